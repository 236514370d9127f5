// From a dropped PLY to what a model of `pc-ewa export` takes: the steps of evaluation, in plain JavaScript.

const SIZES = { char: 1, int8: 1, uchar: 1, uint8: 1, short: 2, int16: 2, ushort: 2, uint16: 2 };
Object.assign(SIZES, { int: 4, int32: 4, uint: 4, uint32: 4, float: 4, float32: 4, double: 8, float64: 8 });

// Read the points of a PLY file, as [x, y, z, x, y, z, ...] in float64; a mesh is refused: its corners are no sample of it.
export function readPly(buffer) {
  const bytes = new Uint8Array(buffer);
  const text = new TextDecoder("latin1").decode(bytes.subarray(0, 65536));
  const end = text.search(/end_header\r?\n/);
  if (!/^ply\r?\n/.test(text) || end < 0) throw new Error("this is not a PLY file");
  const header = text.slice(0, end).split(/\r?\n/).map((line) => line.trim().split(/\s+/));
  const format = header.find((words) => words[0] === "format")?.[1];
  const elements = [];
  for (const [word, ...rest] of header) {
    if (word === "element") elements.push({ name: rest[0], count: Number(rest[1]), properties: [] });
    if (word === "property") elements.at(-1).properties.push(rest);
  }
  const [vertex] = elements;
  if (vertex?.name !== "vertex") throw new Error("its first element is not vertex");
  if (elements.some((element) => element.name === "face" && element.count > 0))
    throw new Error("this is a mesh; give points sampled from its surface");
  const columns = ["x", "y", "z"].map((axis) => vertex.properties.findIndex((property) => property[1] === axis));
  if (columns.includes(-1)) throw new Error("its vertices have no x, y and z");
  const begin = end + text.slice(end).indexOf("\n") + 1;
  const points = new Float64Array(3 * vertex.count);
  if (format === "ascii") {
    const words = new TextDecoder("latin1").decode(bytes.subarray(begin)).split(/\s+/).filter(Boolean);
    points.forEach((_, i) => { points[i] = words[Math.floor(i / 3) * vertex.properties.length + columns[i % 3]]; });
  } else {
    const view = new DataView(buffer, begin), little = format === "binary_little_endian";
    const offsets = [0];
    for (const [kind] of vertex.properties) offsets.push(offsets.at(-1) + SIZES[kind]);
    const row = offsets.at(-1);
    if (row * vertex.count > view.byteLength) throw new Error("the file ends early");
    points.forEach((_, i) => {
      const column = columns[i % 3], at = Math.floor(i / 3) * row + offsets[column];
      const double = SIZES[vertex.properties[column][0]] === 8;
      points[i] = double ? view.getFloat64(at, little) : view.getFloat32(at, little);
    });
  }
  if (!points.length || !points.every(Number.isFinite)) throw new Error("it has no points, or some that are not numbers");
  return points;
}

// Bring points to those that the model was trained on; returns float32, [x, y, z, ...].
export function present(points, { num_points, stored_points, normalize }) {
  let cloud = Float64Array.from(points);
  if (stored_points && cloud.length !== 3 * stored_points) cloud = draw(cloud, stored_points);
  const count = cloud.length / 3;
  if (normalize) {
    const mean = [0, 0, 0];
    cloud.forEach((value, i) => { mean[i % 3] += value / count; });
    cloud = cloud.map((value, i) => value - mean[i % 3]);
    let radius = 0;
    for (let i = 0; i < count; i++) radius = Math.max(radius, Math.hypot(...cloud.subarray(3 * i, 3 * i + 3)));
    cloud = cloud.map((value) => value / (radius || 1));
  }
  const single = Float32Array.from(cloud);
  return count > num_points ? farthest(single, num_points) : single;
}

// Draw points as dense as the training data was; the same for the same cloud.
function draw(cloud, wanted) {
  const count = cloud.length / 3, order = [...Array(count).keys()];
  let state = 1;
  const below = (n) => (state = (state * 48271) % 2147483647) % n;
  for (let i = 0; i < Math.min(wanted, count); i++) {
    const other = i + below(count - i);
    [order[i], order[other]] = [order[other], order[i]];
  }
  const chosen = Array.from({ length: wanted }, (_, i) => order[i < count ? i : below(count)]);
  return Float64Array.from(chosen.flatMap((i) => [...cloud.subarray(3 * i, 3 * i + 3)]));
}

// Choose points one by one, each the farthest from those before it; fround rounds as float32 does.
function farthest(cloud, wanted) {
  const count = cloud.length / 3, nearest = new Float32Array(count).fill(Infinity), f = Math.fround;
  const result = new Float32Array(3 * wanted);
  for (let step = 0, last = 0; step < wanted; step++) {
    result.set(cloud.subarray(3 * last, 3 * last + 3), 3 * step);
    let best = 0;
    const from = last;
    for (let i = 0; i < count; i++) {
      const [dx, dy, dz] = [0, 1, 2].map((axis) => f(cloud[3 * i + axis] - cloud[3 * from + axis]));
      nearest[i] = Math.min(nearest[i], f(f(f(dx * dx) + f(dy * dy)) + f(dz * dz)));
      if (nearest[i] > nearest[best]) best = i;
    }
    last = best;
  }
  return result;
}

// Read the metadata of an ONNX file: onnxruntime-web does not pass it on. Protobuf: ModelProto has it in field 14.
export function readMetadata(buffer) {
  const metadata = {};
  for (const [number, entry] of fields(new Uint8Array(buffer)))
    if (number === 14) {
      const [key, value] = [...fields(entry)].map(([, text]) => new TextDecoder().decode(text));
      metadata[key] = JSON.parse(value);
    }
  return metadata;
}

function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0, factor = 1, byte;
    do { byte = bytes[at++]; value += (byte & 127) * factor; factor *= 128; } while (byte & 128);
    return value;
  };
  while (at < bytes.length) {
    const tag = varint(), kind = tag % 8;
    const length = kind === 2 ? varint() : kind === 5 ? 4 : kind === 1 ? 8 : 0;
    if (kind === 0) varint();
    else yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
    at += length;
  }
}

// Turn logits into [name, probability], the most probable first.
export function ranked(logits, names) {
  const highest = Math.max(...logits), weights = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight, i) => [names[i] ?? `class ${i}`, weight / sum]).sort((a, b) => b[1] - a[1]);
}
