"""Short vectors for numba's compiled code: several numbers that one instruction treats together.

numba unrolls a loop over eight pixels before it could put them into one register. Here such a group is a type of its own. LLVM splits it where the
processor's registers are smaller.
"""
from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model


class Lanes(types.Type):
    """So many numbers of a type."""

    def __init__(self, dtype, count: int):
        self.dtype, self.count = dtype, count
        super().__init__(f"Lanes({dtype}, {count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        number = ir.FloatType() if lanes.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, lanes, ir.VectorType(number, lanes.count))


def _pointer(context, builder, signature, args):
    """Where the element (row, first) of a 2-D array lies."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return cgutils.get_item_pointer(context, builder, signature.args[0], array, list(args[1:3]), wraparound=False)


def _reader(count: int):
    @intrinsic
    def read(typing, array, row, first):
        lanes = Lanes(array.dtype, count)

        def code(context, builder, signature, args):
            kind = context.get_value_type(lanes)
            place = builder.bitcast(_pointer(context, builder, signature, args), kind.as_pointer())
            return builder.load(place, align=lanes.dtype.bitwidth // 8)

        return lanes(array, types.intp, types.intp), code

    return read


four, eight = _reader(4), _reader(8)  # lanes that begin at the element (row, first) of a 2-D array


@intrinsic
def put(typing, array, row, first, lanes):
    """Write lanes to a 2-D array from the element (row, first) on."""

    def code(context, builder, signature, args):
        place = builder.bitcast(_pointer(context, builder, signature, args), args[3].type.as_pointer())
        builder.store(args[3], place, align=lanes.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, lanes), code


@intrinsic
def spread(typing, value, like):
    """A number in all lanes of a vector like another."""

    def code(context, builder, signature, args):
        kind = args[1].type
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count))

    return like(like.dtype, like), code


def _binary(name: str):
    @intrinsic
    def operation(typing, a, b):
        def code(context, builder, signature, args):
            if name in ("fadd", "fsub", "fmul"):
                return getattr(builder, name)(*args, flags=("fast",))
            return builder.select(builder.fcmp_ordered(name, *args, flags=("fast",)), *args)

        return a(a, a), code

    return operation


plus, minus, times, larger, smaller = (_binary(name) for name in ("fadd", "fsub", "fmul", ">", "<"))


@intrinsic
def any_above(typing, a, b):
    """Whether a > b in any lane."""

    def code(context, builder, signature, args):
        above = builder.fcmp_ordered(">", *args, flags=("fast",))
        bits = ir.IntType(a.count)
        return builder.icmp_unsigned("!=", builder.bitcast(above, bits), ir.Constant(bits, 0))

    return types.boolean(a, a), code


def _across(name: str):
    @intrinsic
    def fold(typing, lanes):
        def code(context, builder, signature, args):
            total = builder.extract_element(args[0], ir.Constant(ir.IntType(32), 0))
            parts = args[0]
            width = lanes.count
            while width > 1:
                width //= 2
                pick = ir.VectorType(ir.IntType(32), width)
                low = builder.shuffle_vector(parts, ir.Constant(parts.type, ir.Undefined), ir.Constant(pick, list(range(width))))
                high = builder.shuffle_vector(parts, ir.Constant(parts.type, ir.Undefined), ir.Constant(pick, list(range(width, 2 * width))))
                if name == "sum":
                    parts = builder.fadd(low, high, flags=("fast",))
                else:
                    parts = builder.select(builder.fcmp_ordered(">", low, high, flags=("fast",)), low, high)
                total = builder.extract_element(parts, ir.Constant(ir.IntType(32), 0))
            return total

        return lanes.dtype(lanes), code

    return fold


sum_of, largest = _across("sum"), _across("largest")
