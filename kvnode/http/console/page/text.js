// Numbers, times and bytes as people read them.

const WHOLE = new Intl.NumberFormat("en");
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

export const DASH = "–";

export function whole(number) {
  return number === null || number === undefined ? DASH : WHOLE.format(number);
}

/** With as many digits as say something: 0.42, 7.1, 138. */
export function short(number) {
  if (number === null || number === undefined) return DASH;
  if (number === 0) return "0";
  if (number < 1) return number.toFixed(2);
  if (number < 10) return number.toFixed(1);
  return WHOLE.format(Math.round(number));
}

export function bytes(count) {
  if (count < 1024) return `${count} B`;
  if (count < 1024 * 1024) return `${short(count / 1024)} KiB`;
  return `${short(count / 1024 / 1024)} MiB`;
}

export function seconds(count) {
  if (count < 1) return `${Math.round(count * 1000)} ms`;
  if (count < 60) return `${short(count)} s`;
  if (count < 3600) return `${Math.round(count / 60)} min`;
  if (count < 172_800) return `${Math.round(count / 3600)} h`;
  return `${Math.round(count / 86_400)} days`;
}

export function clock(at_ms) {
  return CLOCK.format(at_ms);
}

/** The time of today, the day and the time of another day. */
export function moment(at_ms) {
  const today = new Date().toDateString() === new Date(at_ms).toDateString();
  return today ? CLOCK.format(at_ms) : `${DAY.format(at_ms)}, ${CLOCK.format(at_ms)}`;
}

export function ago(at_ms, now_ms) {
  const past_s = Math.max(0, (now_ms - at_ms) / 1000);
  return past_s < 5 ? "just now" : `${seconds(past_s)} ago`;
}

/** The bytes as text where they are text that can be edited, else null. */
export function asText(value) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(value);
    // A text field turns a carriage return into a line feed, and does not show the others: such bytes are not text here.
    return /[\u0000-\u0008\u000b-\u001f\u007f]/.test(text) ? null : text;
  } catch {
    return null;
  }
}

export function asHex(value) {
  const lines = [];
  for (let at = 0; at < value.length; at += 16) {
    lines.push(Array.from(value.subarray(at, at + 16), (byte) => byte.toString(16).padStart(2, "0")).join(" "));
  }
  return lines.join("\n");
}

/** The bytes that hexadecimal digits stand for, null where they stand for none. */
export function fromHex(text) {
  const digits = text.replace(/\s+/g, "");
  if (digits.length % 2 || /[^0-9a-f]/i.test(digits)) return null;
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

export function fromBase64(text) {
  const binary = atob(text);
  const value = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at += 1) value[at] = binary.charCodeAt(at);
  return value;
}
