// What scrolls sideways can be reached and scrolled with the keyboard.
{
  const reach = () => {
    for (const box of document.querySelectorAll("article :is(pre, table, .pst-scrollable-table-container, .cell_output .output)")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    }
  };
  addEventListener("load", reach);
  addEventListener("resize", reach);
}
