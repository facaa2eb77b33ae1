// The off-grid solver in the page: csist.solvers.offgrid with its compiled kernels, function by function under the same names, same order of the
// arithmetic, same random stream. Numbers, starts and prior densities come from Python (csist.widgets.unmixing_explorer.solver_settings).
// Left out is what one cluster in one pixel does not need: targets anywhere on a frame, several clusters, read noise, given answers to begin with, and
// sequential Monte Carlo (so also the tier "accurate"). Added: the covariance of x and y, and the probability of each number of targets.
// Python puts the PSF explorer's module before it, as the constant `psf`. Rules kept for the static page: nothing is imported, and there is exactly one
// export, the default. Convention of the whole project: x is the ROW and points down, y is the COLUMN and points right.

// ---- the random stream: SplitMix64 in two halves of 32 bits, because BigInt is slow ----------------------------------------------------------------

// High half of the 64 bits of a b; the low half is Math.imul(a, b).
function highProduct(a, b) {
  const a0 = a & 0xffff, a1 = a >>> 16, b0 = b & 0xffff, b1 = b >>> 16;
  const middle = a1 * b0 + ((a0 * b0) >>> 16), other = (middle & 0xffff) + a0 * b1;
  return a1 * b1 + Math.floor(middle / 65536) + Math.floor(other / 65536);
}

// golden, mix1, mix2: [high, low] halves of the kernels' constants; seed: the low half, the high one is zero.
function randomStream({ golden, mix1, mix2 }) {
  let stateHigh = 0, stateLow = 0, high = 0, low = 0;
  // z <- (z ^ (z >> shift)) factor
  function mix(shift, factorHigh, factorLow) {
    const h = high ^ (high >>> shift), l = low ^ ((low >>> shift) | (high << (32 - shift)));
    high = (highProduct(l, factorLow) + Math.imul(h, factorLow) + Math.imul(l, factorHigh)) | 0;
    low = Math.imul(l, factorLow);
  }
  function uniform() {
    const sum = (stateLow >>> 0) + golden[1];
    stateLow = sum | 0;
    stateHigh = (stateHigh + golden[0] + (sum > 0xffffffff ? 1 : 0)) | 0;
    high = stateHigh;
    low = stateLow;
    mix(30, mix1[0], mix1[1]);
    mix(27, mix2[0], mix2[1]);
    const h = high ^ (high >>> 31), l = low ^ ((low >>> 31) | (high << 1));
    return ((h >>> 11) * 4294967296 + (((l >>> 11) | (h << 21)) >>> 0)) / 9007199254740992;
  }
  return { seed: (value) => { stateHigh = 0; stateLow = value | 0; }, uniform, whole: (n) => Math.min(Math.floor(uniform() * n), n - 1) };
}

// CRC-32 of bytes, as zlib has it.
const CRC = Int32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});
function crc32(...parts) {
  let crc = -1;
  for (const part of parts) for (const byte of new Uint8Array(part.buffer, part.byteOffset, part.byteLength)) crc = (crc >>> 8) ^ CRC[(crc ^ byte) & 255];
  return (crc ^ -1) >>> 0;
}

// ---- the frame -----------------------------------------------------------------------------------------------------------------------------------

// Side of the window that holds all the light (csist.solvers.offgrid.window_side).
const windowSide = (sigma, size) => 2 * Math.max(1, Math.min(Math.ceil(4 * sigma), size - 1)) + 1;

const pixelOf = (frame, size, i, j) => (i < 0 || j < 0 || i >= size || j >= size ? 0 : frame[i * size + j]);

// Middle and light of the brightest 3 x 3 pixels.
function brightestBlock(frame, size) {
  let light = -1, peak = null;
  for (let i = 0; i < size; i++)
    for (let j = 0; j < size; j++) {
      let block = 0;
      for (let a = -1; a < 2; a++) for (let b = -1; b < 2; b++) block += pixelOf(frame, size, i + a, j + b);
      if (block > light) { light = block; peak = [i, j]; }
    }
  return { light, peak };
}

// Pixel [row, column] of the cluster about a peak: the rounded centre of the light in its window (csist.solvers.finding.find_cells).
function centreOfLight(frame, size, side, peak) {
  const reach = (side - 1) / 2;
  let total = 0, down = 0, right = 0;
  for (let a = -reach; a <= reach; a++)
    for (let b = -reach; b <= reach; b++) {
      const v = pixelOf(frame, size, peak[0] + a, peak[1] + b);
      total += v;
      down += a * v;
      right += b * v;
    }
  return [down, right].map((moment, axis) => Math.min(size - 1, Math.max(0, psf.rint(peak[axis] + moment / total))));
}

// Log of the Gamma function at n / 2, for whole n > 0.
function logGammaOfHalf(n) {
  let value = n % 2 ? 0.5 * Math.log(Math.PI) : 0;
  for (let m = n % 2 ? 1 : 2; m < n; m += 2) value += Math.log(m / 2);
  return value;
}

// Linear interpolation between knots of rising t, constant beyond the ends.
function interpolate(t, knots, values) {
  if (!(t > knots[0])) return values[0];
  let k = 1;
  while (k < knots.length && t >= knots[k]) k++;
  if (k === knots.length) return values[k - 1];
  return values[k - 1] + (t - knots[k - 1]) * ((values[k] - values[k - 1]) / (knots[k] - knots[k - 1]));
}

// Claimed hit probability to real one (csist.solvers.offgrid.calibrated).
function calibrated(score, curve, least) {
  const logit = (p) => { const q = Math.min(1 - least, Math.max(least, p)); return Math.log(q / (1 - q)); };
  const [claimed, real] = curve.map((part) => [least, ...part, 1 - least].map(logit));
  return 1 / (1 + Math.exp(-interpolate(logit(score), claimed, real)));
}

// Which calibration curve is a cluster's (csist.solvers.offgrid.kind_of).
function kindOf(count, isCut) {
  return Math.min(5, Math.max(3, count)) - 3 + 3 * isCut;
}

// Claimed standard deviation to real one (csist.solvers.offgrid.widened).
function widened(sigma, [claimed, real], least) {
  const logarithm = Math.log(Math.max(sigma, least)), ratios = real.map((width, k) => Math.log(width) - Math.log(claimed[k]));
  return Math.exp(logarithm + interpolate(logarithm, claimed.map(Math.log), ratios));
}

// ---- the solver ----------------------------------------------------------------------------------------------------------------------------------

// A solver for one tier and one assumed PSF width [px]; frames are size x size, row-major, of a sensor whose largest level is fullScale.
function createSolver(settings, { tier, sigma, size, fullScale }) {
  const {
    ITERATIONS, RELATIVE_TOLERANCE, LONGEST_STEP, HINGE, RIDGE, HOPELESS, MOST_MODES, MERGE, CAUGHT, RELEVANT, MISFIT, BELIEVED, PROMISING, CERTAIN, ALONE,
    BRACKET, STEP_OUT, SHRINK, HISTORY, SLOPE, WALL, SETTLED, REFRESH, FREE, MAX_TARGETS,
  } = settings.constants;
  const { starts, prior, logPrior, thresholds, noise, margin, nodesPerSigma, faint, stray, least } = settings;
  const { effort, calibration, deviations } = settings.tiers[tier];
  const STRIDE = 3 * MAX_TARGETS, fround = Math.fround, { uniform, whole, seed } = randomStream(settings.stream);
  const side = windowSide(sigma, size), reach = (side - 1) / 2, pixels = side * side;
  const region = { low: -0.5, high: 0.5, dim: prior.intensity[0], bright: prior.intensity[1], distance: prior.distance };
  const meanIntensity = 0.5 * (region.dim + region.bright), perWidth = 1 / (0.3 * (region.bright - region.dim)); // intensity_law

  // Tables of the pixel profile (profile_table): value and slope in float64, and a copy of value in float32 for the sampler.
  const first = region.low - margin, last = region.high + margin, nodes = Math.ceil(((last - first) / sigma) * nodesPerSigma) + 1;
  const spacing = (last - first) / (nodes - 1), perPixel = (nodes - 1) / (last - first), lastNode = nodes - 1.001;
  const value = new Float64Array(nodes * side), slope = new Float64Array(nodes * side);
  for (let node = 0; node < nodes; node++) {
    const u = (node === nodes - 1 ? last : first + node * spacing) + reach;
    value.set(psf.pixelProfile(u, side, sigma), node * side);
    slope.set(psf.pixelProfileDerivative(u, side, sigma), node * side);
  }
  const coarse = Float32Array.from(value);

  // Scratch, as in the kernels' Work.
  const row = new Float64Array(MAX_TARGETS * side), light = row.slice(), rowSlope = row.slice(), column = row.slice(), columnSlope = row.slice();
  const residual = new Float64Array(pixels);
  const brightRow = new Float32Array(MAX_TARGETS * side), coarseColumn = brightRow.slice();
  const matrix = new Float64Array(STRIDE * STRIDE), factor = new Float64Array(STRIDE * STRIDE), history = new Float64Array(HISTORY * STRIDE);
  const jacobian = new Float64Array(STRIDE), gradient = new Float64Array(STRIDE), step = new Float64Array(STRIDE), trial = new Float64Array(STRIDE);
  const variance = new Float64Array(STRIDE), covariance = new Float64Array(MAX_TARGETS), direction = new Float64Array(STRIDE);

  // ---- the model

  function readProfile(table, position, profile, k) {
    const t = Math.min(Math.max((position - first) * perPixel, 0), lastNode), node = Math.floor(t), right = t - node;
    for (let j = 0, p = node * side, q = k * side; j < side; j++, p++, q++) profile[q] = table[p] + right * (table[p + side] - table[p]);
  }

  // Profiles of all targets, and the rows' times the intensity.
  function readLight(theta, number) {
    for (let k = 0; k < number; k++) {
      readProfile(value, theta[3 * k], row, k);
      readProfile(value, theta[3 * k + 1], column, k);
      for (let i = k * side; i < (k + 1) * side; i++) light[i] = theta[3 * k + 2] * row[i];
    }
  }

  // The same in float32, for the sampler. Sum and product are rounded together, here as in the sums over targets, as processors do it.
  function readCoarse(theta, number) {
    for (let k = 0; k < number; k++) {
      for (let axis = 0; axis < 2; axis++) {
        const t = Math.min(Math.max((theta[3 * k + axis] - first) * perPixel, 0), lastNode), node = Math.floor(t), right = fround(t - node);
        const profile = axis ? coarseColumn : brightRow;
        for (let j = 0, p = node * side, q = k * side; j < side; j++, p++, q++) profile[q] = coarse[p] + right * fround(coarse[p + side] - coarse[p]);
      }
      const intensity = fround(theta[3 * k + 2]);
      for (let i = k * side; i < (k + 1) * side; i++) brightRow[i] *= intensity;
    }
  }

  const squaredDistance = (theta, k, others, j) => (theta[3 * k] - others[3 * j]) ** 2 + (theta[3 * k + 1] - others[3 * j + 1]) ** 2;
  const beyond = (v, low, high) => Math.min(v - low, 0) + Math.max(v - high, 0);

  // ---- least squares

  // Leaves profiles and residuals for the normal equations.
  function objective(theta, number, evidence) {
    const { level, weight, ceiling, perLevel } = evidence;
    let total = 0;
    readLight(theta, number);
    for (let i = 0, q = 0; i < side; i++)
      for (let j = 0; j < side; j++, q++) {
        let m = 0;
        for (let k = 0; k < number; k++) m += light[k * side + i] * column[k * side + j];
        const r = Math.min((m - level[q]) * weight[q], ceiling[q]);
        residual[q] = r;
        total += r * r;
      }
    total *= perLevel * perLevel;
    for (let k = 0; k < number; k++) {
      const d = (theta[3 * k + 2] - meanIntensity) * perWidth;
      const ex = beyond(theta[3 * k], region.low, region.high) / HINGE, ey = beyond(theta[3 * k + 1], region.low, region.high) / HINGE;
      total += d * d + ex * ex + ey * ey;
      for (let other = 0; other < k; other++) {
        const squared = squaredDistance(theta, k, theta, other);
        if (squared < region.distance * region.distance) total += ((region.distance - Math.sqrt(squared)) / HINGE) ** 2;
      }
    }
    return total;
  }

  // Upper half of the information J^T J, and gradient J^T r, of the objective, which was taken last at the same theta.
  function normalEquations(theta, number, { ceiling, perLevel }) {
    const n = 3 * number;
    for (let a = 0; a < n; a++) {
      gradient[a] = 0;
      for (let b = a; b < n; b++) matrix[a * STRIDE + b] = 0;
    }
    for (let k = 0; k < number; k++) {
      readProfile(slope, theta[3 * k], rowSlope, k);
      readProfile(slope, theta[3 * k + 1], columnSlope, k);
    }
    for (let i = 0, q = 0; i < side; i++)
      for (let j = 0; j < side; j++, q++) {
        if (residual[q] >= ceiling[q]) continue;
        for (let k = 0; k < number; k++) {
          const r = k * side + i, c = k * side + j, scaled = column[c] * perLevel;
          jacobian[3 * k] = theta[3 * k + 2] * rowSlope[r] * scaled;
          jacobian[3 * k + 1] = light[r] * columnSlope[c] * perLevel;
          jacobian[3 * k + 2] = row[r] * scaled;
        }
        const misfit = residual[q] * perLevel;
        for (let a = 0; a < n; a++) {
          const s = jacobian[a];
          gradient[a] += s * misfit;
          for (let b = a, p = a * STRIDE + a; b < n; b++, p++) matrix[p] += s * jacobian[b];
        }
      }
    addPrior(theta, number);
  }

  function addPrior(theta, number) {
    for (let k = 0; k < number; k++) {
      const p = 3 * k;
      matrix[(p + 2) * STRIDE + p + 2] += perWidth * perWidth;
      gradient[p + 2] += (theta[p + 2] - meanIntensity) * perWidth * perWidth;
      for (let axis = 0; axis < 2; axis++) {
        const e = beyond(theta[p + axis], region.low, region.high);
        if (e === 0) continue;
        matrix[(p + axis) * STRIDE + p + axis] += 1 / (HINGE * HINGE);
        gradient[p + axis] += e / (HINGE * HINGE);
      }
      for (let other = 0; other < k; other++) {
        const q = 3 * other, distance = Math.sqrt(squaredDistance(theta, k, theta, other));
        if (distance >= region.distance) continue;
        const e = (region.distance - distance) / HINGE, d = Math.max(distance, 1e-6);
        for (let axis = 0; axis < 2; axis++) {
          const u = (theta[q + axis] - theta[p + axis]) / d / HINGE; // derivative of e
          gradient[p + axis] += u * e;
          gradient[q + axis] -= u * e;
          for (let axis2 = 0; axis2 < 2; axis2++) {
            const v = (theta[q + axis2] - theta[p + axis2]) / d / HINGE;
            matrix[(p + axis) * STRIDE + p + axis2] += u * v;
            matrix[(q + axis) * STRIDE + q + axis2] += u * v;
            matrix[(q + axis) * STRIDE + p + axis2] -= u * v;
          }
        }
      }
    }
  }

  // Upper factor U of matrix + damping * its diagonal = U^T U, left in `factor` with reciprocals on its diagonal; false if that is not positive definite.
  function cholesky(n, damping) {
    for (let i = 0; i < n; i++) {
      for (let p = i * STRIDE + i; p < i * STRIDE + n; p++) factor[p] = matrix[p];
      factor[i * STRIDE + i] = matrix[i * STRIDE + i] * (1 + damping) + 1e-9;
    }
    for (let i = 0; i < n; i++) {
      const own = i * STRIDE;
      if (!(factor[own + i] > 0)) return false;
      const scale = 1 / Math.sqrt(factor[own + i]);
      factor[own + i] = scale;
      for (let j = i + 1; j < n; j++) factor[own + j] *= scale;
      for (let j = i + 1; j < n; j++) {
        const s = factor[own + j];
        for (let k = j, p = j * STRIDE + j; k < n; k++, p++) factor[p] -= s * factor[own + k];
      }
    }
    return true;
  }

  // x <- U^-T x
  function solveLower(n, x) {
    for (let i = 0; i < n; i++) {
      x[i] *= factor[i * STRIDE + i];
      for (let k = i + 1; k < n; k++) x[k] -= factor[i * STRIDE + k] * x[i];
    }
  }

  // x <- U^-1 x
  function solveUpper(n, x) {
    for (let i = n - 1; i >= 0; i--) {
      let s = x[i];
      for (let k = i + 1; k < n; k++) s -= factor[i * STRIDE + k] * x[k];
      x[i] = s * factor[i * STRIDE + i];
    }
  }

  // Whether every target of one answer lies within `within` (city block) of a target of the other.
  function sameMode(theta, other, number, within) {
    for (let k = 0; k < number; k++) {
      let nearest = FREE;
      for (let j = 0; j < number; j++) nearest = Math.min(nearest, Math.abs(theta[3 * k] - other[3 * j]) + Math.abs(theta[3 * k + 1] - other[3 * j + 1]));
      if (nearest > within) return false;
    }
    return true;
  }

  // Levenberg-Marquardt in place; returns the objective. Gives up a start whose pace cannot bring it to `goal`; FREE if it comes to a known mode.
  function fit(theta, number, evidence, goal, known) {
    const n = 3 * number;
    let damping = 1e-2, stale = true, cost = objective(theta, number, evidence);
    for (let round = 0; round < ITERATIONS; round++) {
      if (stale) normalEquations(theta, number, evidence);
      stale = false;
      if (!cholesky(n, damping)) {
        damping = Math.max(4 * damping, 1e-6);
        continue;
      }
      for (let a = 0; a < n; a++) step[a] = gradient[a];
      solveLower(n, step);
      solveUpper(n, step);
      for (let a = 0; a < n; a++) {
        const longest = a % 3 < 2 ? LONGEST_STEP : FREE;
        trial[a] = theta[a] - Math.min(Math.max(step[a], -longest), longest);
      }
      const next = objective(trial, number, evidence);
      if (next >= cost) {
        damping *= 4;
        if (damping > 1e5) break;
        continue;
      }
      const gain = cost - next;
      cost = next;
      stale = true;
      damping = Math.max(0.3 * damping, 1e-9);
      for (let a = 0; a < n; a++) theta[a] = trial[a];
      if (gain < RELATIVE_TOLERANCE * (1 + cost) || cost - goal > HOPELESS * gain) break;
      for (const mode of known) if (sameMode(theta, mode.theta, number, CAUGHT)) return FREE;
    }
    return cost;
  }

  function localShape(theta, number, evidence) {
    objective(theta, number, evidence);
    normalEquations(theta, number, evidence);
    for (let k = 0; k < number; k++) for (let a = 3 * k; a < 3 * k + 2; a++) matrix[a * STRIDE + a] += RIDGE;
    return cholesky(3 * number, 0);
  }

  function logDeterminant(n) {
    let total = 0;
    for (let a = 0; a < n; a++) total -= 2 * Math.log(factor[a * STRIDE + a]);
    return total;
  }

  // Diagonal of (U^T U)^-1, left in `variance`, and its entries between x and y of each target, left in `covariance`.
  function variances(n) {
    const before = trial; // column of U^-T of the parameter before
    for (let a = 0; a < n; a++) {
      for (let b = 0; b < n; b++) step[b] = 0;
      step[a] = 1;
      solveLower(n, step);
      variance[a] = 0;
      for (let b = a; b < n; b++) variance[a] += step[b] ** 2;
      if (a % 3 === 0) before.set(step);
      else if (a % 3 === 1) {
        let s = 0;
        for (let b = a; b < n; b++) s += step[b] * before[b];
        covariance[(a - 1) / 3] = s;
      }
    }
  }

  // ---- modes

  // Smallest and largest number of targets that the visible light allows.
  function countRange({ level, weight, ceiling }) {
    let seen = 0, complete = true;
    for (let q = 0; q < pixels; q++) {
      seen += level[q] * weight[q];
      if (ceiling[q] === 0) complete = false;
    }
    const slack = 5 * side * noise + 0.001 * seen;
    const fewest = Math.min(Math.max(prior.fewest, Math.ceil((seen - slack) / region.bright)), prior.most);
    if (!complete || !(region.dim > 0)) return [fewest, prior.most];
    return [fewest, Math.min(Math.max(fewest, Math.trunc((seen + slack) / region.dim)), prior.most)];
  }

  // Enter a minimum into the list of distinct modes.
  function addMode(theta, number, cost, modes) {
    const known = modes.find((mode) => mode.number === number && sameMode(theta, mode.theta, number, MERGE));
    if (known && cost < known.cost) Object.assign(known, { theta, cost });
    if (!known && modes.length < MOST_MODES) modes.push({ theta, number, cost });
  }

  // Levenberg-Marquardt from every start and count; distinct modes { theta, number, cost } and the best objective.
  function findModes(evidence) {
    const modes = [], [fewest, most] = countRange(evidence), bestOfCount = new Float64Array(MAX_TARGETS + 1).fill(FREE), fits = MISFIT * pixels;
    let best = FREE, explained = 0;
    for (let attempt = 0; attempt < 2 && explained === 0; attempt++) // the second one, with the other starts, only if none of the pilots explains the frame
      for (let number = fewest; number <= most; number++) {
        if (explained > 0 && number > explained + 2) break;
        const begin = modes.length, tries = number === 1 ? 1 : number === 2 ? Math.min(effort.starts, 12) : effort.starts;
        let again = 0;
        for (let start = attempt * effort.pilot; start < tries; start++) {
          if (start >= effort.pilot && bestOfCount[number] > (attempt ? best : Math.max(best, fits)) + PROMISING) break;
          const before = modes.length, theta = new Float64Array(STRIDE);
          if (before > begin && again >= effort.agreed * (before - begin)) break;
          theta.set(starts[number][start]);
          const cost = fit(theta, number, evidence, best + RELEVANT, modes.slice(begin));
          bestOfCount[number] = Math.min(bestOfCount[number], cost);
          if (cost <= best + RELEVANT) {
            best = Math.min(best, cost);
            addMode(theta, number, cost, modes);
            again += modes.length === before;
          }
          again += cost === FREE;
        }
        if (explained === 0 && best < fits) explained = number;
      }
    return { modes, best };
  }

  // Log evidence of a mode for a Gaussian posterior; also fills the variances.
  function laplaceWeight({ theta, number, cost }, evidence) {
    localShape(theta, number, evidence);
    variances(3 * number);
    const width = Math.log(perWidth) - 0.5 * Math.log(2 * Math.PI);
    return -0.5 * cost - 0.5 * logDeterminant(3 * number) + logPrior[number] + number * (1.5 * Math.log(2 * Math.PI) + width);
  }

  // ---- the posterior

  function priorExcess(theta, number) {
    let worst = 0;
    for (let k = 0; k < number; k++) {
      worst = Math.max(worst, Math.abs(beyond(theta[3 * k + 2], region.dim, region.bright)));
      worst = Math.max(worst, SLOPE * Math.abs(beyond(theta[3 * k], region.low, region.high)));
      worst = Math.max(worst, SLOPE * Math.abs(beyond(theta[3 * k + 1], region.low, region.high)));
      for (let other = 0; other < k; other++) {
        const d = squaredDistance(theta, k, theta, other);
        if (d < region.distance * region.distance) worst = Math.max(worst, SLOPE * (region.distance - Math.sqrt(d)));
      }
    }
    return worst;
  }

  // Largest violation of low <= m <= high, in float32; not finished once it is above `cap`.
  function boxExcess(theta, number, { low, high }, cap) {
    readCoarse(theta, number);
    let worst = 0;
    for (let i = 0, q = 0; i < side; i++) {
      for (let j = 0; j < side; j++, q++) {
        let m = 0;
        for (let k = 0; k < number; k++) m = fround(m + brightRow[k * side + i] * coarseColumn[k * side + j]);
        worst = Math.max(worst, fround(m - high[q]), fround(low[q] - m));
      }
      if (worst > fround(cap)) break;
    }
    return worst;
  }

  function chiSquared(theta, number, { level, weight, ceiling, perLevel }) {
    readCoarse(theta, number);
    let total = 0;
    for (let i = 0, q = 0; i < side; i++)
      for (let j = 0; j < side; j++, q++) {
        let m = 0;
        for (let k = 0; k < number; k++) m = fround(m + brightRow[k * side + i] * coarseColumn[k * side + j]);
        const r = Math.min((m - level[q]) * weight[q], ceiling[q]);
        total += r * r;
      }
    return total * perLevel * perLevel;
  }

  // What a slice of the posterior bounds: the largest violation of prior and box, or chi squared with a wall about the prior.
  function excess(theta, number, evidence, cap) {
    const worst = evidence.wall * priorExcess(theta, number);
    if (!evidence.exact) return chiSquared(theta, number, evidence) + worst;
    return worst > cap ? worst : Math.max(worst, boxExcess(theta, number, evidence, cap));
  }

  // Move to a uniform point of the slice {excess <= cap} along `direction` (Neal's slice sampler); returns the new excess, or -1.
  function sliceStep(theta, number, evidence, cap) {
    const n = 3 * number;
    const tryAt = (u) => {
      for (let a = 0; a < n; a++) trial[a] = theta[a] + u * direction[a];
      return excess(trial, number, evidence, cap);
    };
    let low = -BRACKET * uniform(), high = low + BRACKET;
    for (let out = 0; out < STEP_OUT && tryAt(low) <= cap; out++) low -= BRACKET;
    for (let out = 0; out < STEP_OUT && tryAt(high) <= cap; out++) high += BRACKET;
    for (let round = 0; round < SHRINK; round++) {
      const u = low + (high - low) * uniform(), found = tryAt(u);
      if (found <= cap) {
        for (let a = 0; a < n; a++) theta[a] = trial[a];
        return found;
      }
      if (u < 0) low = u;
      else high = u;
    }
    return -1;
  }

  // Hit-and-run around a mode; fills `states` and returns the cap that was reached, 0 inside the box.
  function runChain(theta, number, evidence, updates, burnIn, states) {
    const n = 3 * number, keep = states.length, every = Math.max(1, Math.floor(updates / keep));
    let stored = 0, got = 0, current = excess(theta, number, evidence, FREE), cap = current;
    for (let turn = 0; turn < burnIn + every * keep; turn++) {
      if (turn % REFRESH === 0) localShape(theta, number, evidence);
      if (!evidence.exact) cap = current - 2 * Math.log(Math.max(uniform(), 1e-12));
      if (stored < 20 || uniform() < 0.5) {
        for (let a = 0; a < n; a++) direction[a] = 3.4 * (uniform() - 0.5);
        solveUpper(n, direction);
      } else {
        const one = whole(Math.min(stored, HISTORY)), two = whole(Math.min(stored, HISTORY));
        for (let a = 0; a < n; a++) direction[a] = history[one * STRIDE + a] - history[two * STRIDE + a];
        if (one === two) continue;
      }
      const moved = sliceStep(theta, number, evidence, cap);
      if (moved >= 0) current = moved;
      if (evidence.exact) cap = Math.min(cap, current);
      if (turn % 3 === 0) {
        const slot = stored < HISTORY ? stored : whole(HISTORY);
        for (let a = 0; a < n; a++) history[slot * STRIDE + a] = theta[a];
        stored++;
      }
      if (turn >= burnIn && (turn - burnIn + 1) % every === 0 && got < keep) states[got++] = theta.slice();
    }
    while (got < keep) states[got++] = theta.slice();
    return evidence.exact ? cap : 0;
  }

  // Log prior mass of the region that states fill evenly.
  function logVolume(states, number) {
    const n = 3 * number, half = 0.5 * n, mean = new Float64Array(STRIDE);
    for (const state of states) for (let a = 0; a < n; a++) mean[a] += state[a] / states.length;
    for (let a = 0; a < n; a++)
      for (let b = 0; b <= a; b++) {
        let s = a === b ? 1e-10 : 0;
        for (const state of states) s += ((state[a] - mean[a]) * (state[b] - mean[b])) / (states.length - 1);
        matrix[b * STRIDE + a] = s;
      }
    if (!cholesky(n, 0)) return -FREE;
    const ellipsoid = half * Math.log(Math.PI) - logGammaOfHalf(n + 2) + half * Math.log(n + 2);
    return 0.5 * logDeterminant(n) + 0.5 * (ellipsoid + half * Math.log(12)) + logPrior[number];
  }

  function confine(theta, number) {
    for (let k = 0; k < number; k++) {
      theta[3 * k] -= beyond(theta[3 * k], region.low, region.high);
      theta[3 * k + 1] -= beyond(theta[3 * k + 1], region.low, region.high);
      theta[3 * k + 2] -= beyond(theta[3 * k + 2], region.dim, region.bright);
    }
  }

  // Chains from the best modes, their lengths in proportion to `load`: weighted states { theta, number, weight }, none if no mode is in the box.
  function sampleModes(evidence, modes, order, laplace, load) {
    const used = Math.min(order.length, effort.modes), room = effort.kept + 20 * effort.modes, groups = [];
    let total = 0, filled = 0, top = -FREE;
    for (let rank = 0; rank < used; rank++) total += Math.exp(0.5 * (laplace[order[rank]] - laplace[order[0]]));
    for (let rank = 0; rank < used; rank++) {
      const mode = modes[order[rank]], { number } = mode, own = laplace[order[rank]];
      const share = Math.exp(0.5 * (own - laplace[order[0]])) / total, keep = Math.max(20, Math.trunc(effort.kept * share));
      if (share < 0.01 || filled + keep > room) continue;
      if (!evidence.exact) confine(mode.theta, number);
      const updates = Math.max(2 * keep, Math.trunc((load * effort.updates * share * number) / 5)), drawn = Array(keep).fill(null);
      if (runChain(mode.theta.slice(), number, evidence, updates, Math.trunc((effort.burn_in * number) / 5), drawn) > 0.02) continue;
      const logWeight = evidence.exact ? 0.5 * (own + logVolume(drawn, number) - number * Math.log(region.bright - region.dim)) : own;
      top = Math.max(top, logWeight);
      filled += keep;
      groups.push({ number, logWeight, drawn });
    }
    return normalised(groups.flatMap(({ number, logWeight, drawn }) =>
      drawn.map((theta) => ({ theta, number, weight: Math.exp(logWeight - top) / drawn.length }))));
  }

  function normalised(weighted) {
    const total = weighted.reduce((sum, { weight }) => sum + weight, 0);
    for (const one of weighted) one.weight /= total;
    return weighted;
  }

  // Order targets like the reference's, exchanging pairs while that lowers the sum of squared distances; whether anything changed.
  function align(theta, number, reference) {
    let moved = false;
    for (let round = 0; round < MAX_TARGETS * MAX_TARGETS; round++) {
      let changed = false;
      for (let k = 0; k < number; k++)
        for (let j = 0; j < k; j++) {
          const now = squaredDistance(theta, k, reference, k) + squaredDistance(theta, j, reference, j);
          if (squaredDistance(theta, k, reference, j) + squaredDistance(theta, j, reference, k) < now - 1e-12) {
            moved = changed = true;
            for (let a = 0; a < 3; a++) [theta[3 * k + a], theta[3 * j + a]] = [theta[3 * j + a], theta[3 * k + a]];
          }
        }
      if (!changed) break;
    }
    return moved;
  }

  // ---- the read-out

  const hitShare = (squared) => thresholds.reduce((hits, t) => hits + (squared <= t * t), 0) / thresholds.length;
  const gaussianHit = (v) => thresholds.reduce((sum, t) => sum + 1 - Math.exp((-t * t) / (v + 1e-12)), 0) / thresholds.length;

  // Deviations and hit probabilities from the variances left by `variances`.
  function gaussianErrors(number) {
    return Array.from({ length: number }, (_, k) => {
      const xx = variance[3 * k], yy = variance[3 * k + 1];
      return { xx, yy, xy: covariance[k], score: gaussianHit(xx + yy) };
    });
  }

  // Probability of each number of targets, by index.
  function countShares(weighted) {
    const shares = new Float64Array(MAX_TARGETS + 1);
    for (const { number, weight } of weighted) shares[number] += weight;
    return shares;
  }

  function alignToMean(states, number, total) {
    const heaviest = states.filter((s) => s.number === number).reduce((a, b) => (b.weight > a.weight ? b : a));
    let mean = heaviest.theta.slice();
    for (let turn = 0; turn < 4; turn++) {
      let moved = false;
      const following = new Float64Array(STRIDE);
      for (const state of states) {
        if (state.number !== number) continue;
        moved = align(state.theta, number, mean) || moved;
        for (let a = 0; a < 3 * number; a++) following[a] += (state.weight / total) * state.theta[a];
      }
      mean = following;
      if (turn > 0 && !moved) break;
    }
    return mean;
  }

  // Move target k of theta to the geometric median of its states, then to that of the states within reach (Weiszfeld's iteration).
  function settle(states, k, number, reachOf, theta) {
    for (const within of [FREE, reachOf])
      for (let turn = 0; turn < 10; turn++) {
        let x = 0, y = 0, norm = 0;
        for (const state of states) {
          if (state.number !== number) continue;
          const d = squaredDistance(state.theta, k, theta, k);
          if (d >= within * within) continue;
          const w = state.weight / Math.sqrt(Math.max(d, 4e-4));
          x += w * state.theta[3 * k];
          y += w * state.theta[3 * k + 1];
          norm += w;
        }
        if (norm === 0) break;
        const move = Math.abs(x / norm - theta[3 * k]) + Math.abs(y / norm - theta[3 * k + 1]);
        theta[3 * k] = x / norm;
        theta[3 * k + 1] = y / norm;
        if (move < SETTLED) break;
      }
  }

  // Positions, errors and hit probabilities of the likeliest count.
  function summarise(states) {
    const shares = countShares(states), number = shares.indexOf(Math.max(...shares)), total = shares[number];
    const theta = alignToMean(states, number, total), effective = states.reduce((s, state) => s + state.weight ** 2, 0), errors = [];
    for (let k = 0; k < number; k++) {
      settle(states, k, number, 1.1 * thresholds[thresholds.length - 1], theta);
      let hits = 0, xx = 0, yy = 0, xy = 0;
      for (const state of states) {
        let nearest = FREE;
        for (let j = 0; j < state.number; j++) nearest = Math.min(nearest, squaredDistance(state.theta, j, theta, k));
        hits += state.weight * hitShare(nearest);
        if (state.number !== number) continue;
        const w = state.weight / total, dx = state.theta[3 * k] - theta[3 * k], dy = state.theta[3 * k + 1] - theta[3 * k + 1];
        xx += w * dx * dx;
        yy += w * dy * dy;
        xy += w * dx * dy;
      }
      errors.push({ xx, yy, xy, score: (hits + effective * gaussianHit(xx + yy)) / (1 + effective) });
    }
    return { theta, number, errors, shares, states };
  }

  // Whether part of the window lies beyond the frame.
  const isCut = ({ weight }) => [0, side - 1, pixels - side, pixels - 1].some((corner) => weight[corner] === 0);

  const softened = (evidence, trust) => ({ ...evidence, perLevel: evidence.perLevel * trust, exact: false, wall: WALL });

  // One window's answer { theta, number, errors, shares, states }; states is empty where a single narrow Gaussian needs no sampling.
  function solveFrame(evidence) {
    const { modes, best } = findModes(evidence);
    // A model that does not explain the frame must not be trusted to the last grey level: what is left over counts as noise.
    const misfit = Math.max(best / (MISFIT * pixels), 1e-9);
    if (misfit > 1) {
      evidence = softened(evidence, Math.sqrt(pixels / best));
      for (const mode of modes) mode.cost *= pixels / best;
    }
    let top = -FREE, second = -FREE, answer = null;
    const laplace = modes.map((mode) => {
      const weight = laplaceWeight(mode, evidence);
      if (weight <= top) second = Math.max(second, weight);
      else {
        [second, top] = [top, weight];
        answer = { theta: mode.theta.slice(), number: mode.number, errors: gaussianErrors(mode.number), states: [] };
      }
      return weight;
    });
    answer.shares = countShares(normalised(modes.map(({ number }, k) => ({ number, weight: Math.exp(laplace[k] - top) }))));
    const spread = Math.max(...answer.errors.map(({ xx, yy }) => xx + yy));
    if (misfit <= 1 && spread < CERTAIN ** 2 && second < top - ALONE) return answer;
    const order = laplace.map((_, k) => k).sort((a, b) => laplace[b] - laplace[a]);
    let load = second < top - ALONE ? Math.min(1, Math.sqrt(spread) / effort.sharp) : 1;
    if (isCut(evidence)) load *= effort.cut;
    let states = sampleModes(evidence, modes, order, laplace, load);
    if (!states.length && evidence.exact) states = sampleModes(softened(evidence, 1 / Math.sqrt(Math.max(1, best / pixels))), modes, order, laplace, load);
    if (states.length) Object.assign(answer, summarise(states));
    for (const error of answer.errors) error.score *= Math.min(1, BELIEVED / misfit);
    return answer;
  }

  // ---- a whole frame

  // What the sensor says about the window's pixels, and its random seed (_Clusters in csist.solvers.offgrid).
  function readWindow(frame, cell) {
    const lanes = 8 * Math.ceil(side / 8), padded = [new Float64Array(side * lanes), new Float64Array(side * lanes)];
    const [level, weight, ceiling] = [0, 0, 0].map(() => new Float64Array(pixels)), low = new Float32Array(pixels), high = new Float32Array(pixels);
    for (let i = 0, q = 0; i < side; i++)
      for (let j = 0; j < side; j++, q++) {
        const r = cell[0] - reach + i, c = cell[1] - reach + j, measured = r >= 0 && c >= 0 && r < size && c < size;
        weight[q] = padded[1][i * lanes + j] = +measured;
        level[q] = padded[0][i * lanes + j] = measured ? frame[r * size + c] : 0;
        ceiling[q] = measured && level[q] < fullScale ? FREE : 0;
        low[q] = measured && level[q] > 0 ? level[q] - 0.5 : -FREE;
        high[q] = ceiling[q] > 0 ? level[q] + 0.5 : FREE;
      }
    return { level, weight, ceiling, low, high, perLevel: 1 / noise, exact: true, wall: 1, seed: crc32(...padded) };
  }

  // Answer to a frame, brightest target first: { cell, targets: [{ x, y, intensity, xx, yy, xy, score }], shares, states }; cell is null in the dark.
  function solve(frame) {
    const { light, peak } = brightestBlock(frame, size);
    if (light <= Math.max(faint * region.dim, stray * light)) return { cell: null, targets: [], shares: countShares([]), states: [] };
    const cell = centreOfLight(frame, size, side, peak), evidence = readWindow(frame, cell);
    seed(evidence.seed);
    const { theta, errors, shares, states } = solveFrame(evidence), curve = calibration[kindOf(errors.length, isCut(evidence))];
    const targets = errors.map(({ xx, yy, xy, score }, k) => {
      const claimed = [xx, yy].map((v) => Math.max(Math.sqrt(v), least)), [sx, sy] = claimed.map((sigma) => widened(sigma, deviations, least));
      return {
        x: theta[3 * k] + cell[0], y: theta[3 * k + 1] + cell[1], intensity: theta[3 * k + 2],
        xx: sx * sx, yy: sy * sy, xy: (xy / (claimed[0] * claimed[1])) * sx * sy, score: calibrated(score, curve, least),
      };
    });
    targets.sort((a, b) => b.intensity - a.intensity);
    return { cell, targets, shares, states };
  }

  return { solve, readWindow, objective, findModes, laplaceWeight };
}

export default { createSolver, randomStream, calibrated, kindOf, widened };
