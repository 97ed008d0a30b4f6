// Prometheus' text format, limited to what the dashboard needs.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

// [{name, labels, value}]
export function parse(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (!match || line.startsWith("#")) continue;
    const labels = {};
    for (const [, key, value] of (match[2] ?? "").matchAll(LABEL)) labels[key] = value;
    const value = match[3] === "+Inf" ? Infinity : match[3] === "-Inf" ? -Infinity : Number(match[3]);
    found.push({ name: match[1], labels, value });
  }
  return found;
}

const fits = (sample, name, labels) => sample.name === name && Object.entries(labels).every(([k, v]) => sample.labels[k] === v);

export function total(samples, name, labels = {}) {
  return samples.filter((s) => fits(s, name, labels)).reduce((sum, s) => sum + s.value, 0);
}

// The sum over all matching label sets: {count, sum, buckets: [[upper bound, cumulative count]]}
export function histogram(samples, name, labels = {}) {
  const buckets = new Map();
  for (const s of samples) {
    if (!fits(s, `${name}_bucket`, labels)) continue;
    const bound = s.labels.le === "+Inf" ? Infinity : Number(s.labels.le);
    buckets.set(bound, (buckets.get(bound) ?? 0) + s.value);
  }
  return {
    count: total(samples, `${name}_count`, labels),
    sum: total(samples, `${name}_sum`, labels),
    buckets: [...buckets].sort((a, b) => a[0] - b[0]),
  };
}

// Linear within a bucket, as Prometheus' histogram_quantile; null without observations.
export function quantile({ count, buckets }, q) {
  if (!count) return null;
  let below = 0;
  let lower = 0;
  for (const [bound, upTo] of buckets) {
    if (upTo >= q * count) {
      if (bound === Infinity) return lower;
      return lower + ((bound - lower) * (q * count - below)) / Math.max(upTo - below, 1);
    }
    below = upTo;
    lower = bound;
  }
  return lower;
}

export function fraction(part, all) {
  return all ? `${Math.round((100 * part) / all)}%` : "–";
}
