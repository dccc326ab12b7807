// Numbers and times as people read them.

const UNKNOWN = "–";

/** A number with about three digits: 0.42, 7.3, 128, 1.2k, 3.4M. */
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size >= 1e6) return trim(value / 1e6, size >= 1e7 ? 1 : 2) + "M";
  if (size >= 1e4) return trim(value / 1e3, size >= 1e5 ? 0 : 1) + "k";
  if (size >= 100 || Number.isInteger(value)) return String(Math.round(value));
  return trim(value, size >= 10 ? 1 : 2);
}

function trim(value, digits) {
  return String(Number(value.toFixed(digits)));
}

/** A span in seconds: 12 ms, 0.84 s, 43 s, 2 m 10 s, 3 h. */
export function seconds(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value === 0) return "0 s";
  if (value < 0.1) return `${trim(value * 1000, value < 0.01 ? 1 : 0)} ms`;
  if (value < 10) return `${trim(value, 2)} s`;
  if (value < 100) return `${Math.round(value)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) {
    const rest = Math.round(value % 60);
    return rest && minutes < 10 ? `${minutes} m ${rest} s` : `${minutes} m`;
  }
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} d`;
}

export function share(value) {
  return value === null || value === undefined ? UNKNOWN : `${Math.round(value * 100)} %`;
}

/** Money, or any other figure with two digits behind the point. */
export function money(value) {
  return value >= 1000 ? Math.round(value).toLocaleString("en") : value.toFixed(2);
}

/** The time of day. */
export function clock(millis, withSeconds = true) {
  const options = { hour: "2-digit", minute: "2-digit", hour12: false };
  if (withSeconds) options.second = "2-digit";
  return new Date(millis).toLocaleTimeString("en-GB", options);
}

/** A count with its noun: 1 replica, 2 replicas. */
export function count(value, noun) {
  return `${value} ${noun}${value === 1 ? "" : "s"}`;
}

/** The server's clock, since the browser's may differ. */
export const time = {
  ahead: 0,
  now() {
    return Date.now() + this.ahead;
  },
  /** Takes the clock from a response's `date`, which is rounded down to a second. */
  learn(response) {
    const server = Date.parse(response.headers.get("date") ?? "");
    const ahead = server + 500 - Date.now();
    this.ahead = Math.abs(ahead) > 1500 ? ahead : 0;
  },
};

/** The time since then, in whole seconds. */
export function age(millis) {
  return seconds(Math.max(0, Math.round((time.now() - millis) / 1000)));
}

/** Replicas of a pool that occupy their GPUs. */
export function occupying(pool) {
  const { starting, ready, draining, failed } = pool.replicas;
  return starting + ready + draining + failed;
}

/** What a pool costs in an hour, and what it saved today: in money if the price is known, else in GPUs. */
export function cost(pool) {
  const { gpus, gpuHourPrice } = pool.settings;
  const hourly = occupying(pool) * gpus;
  const saved = Math.max(0, pool.today.atMaximum - pool.today.gpuHours);
  return { priced: gpuHourPrice > 0, gpus: hourly, hourly: hourly * gpuHourPrice, savedGpuHours: saved, saved: saved * gpuHourPrice };
}
