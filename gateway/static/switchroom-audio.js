// The audio thread of switchroom.js: the microphone as s16le frames, and a queue of s16le to play.
// Both are at the session's sample rate; the browser's own rate is another one (48 or 44.1 kHz).

const FRAME_S = 0.02;
const START_S = 0.04; // playback starts with so much queued, or after so long
const ZEROS = 12; // zero crossings of the filter on each side: 0.75 ms of delay at 16 kHz
const PHASES = 480; // exact for 48 and 44.1 kHz to 16 kHz and back, or within a thousandth

/** Converts the sample rate of a stream with a windowed sinc filter. */
export class Resampler {
  #step;
  #half;
  #taps;
  #kept;
  #at;

  constructor(from, to) {
    const band = Math.min(1, to / from);
    this.#step = from / to;
    this.#half = Math.ceil(ZEROS / band);
    this.#taps = Array.from({ length: PHASES }, (_, phase) => kernel(this.#half, phase / PHASES, 0.92 * band));
    this.reset();
  }

  reset() {
    this.#kept = new Float32Array(this.#half);
    this.#at = this.#half;
  }

  push(samples) {
    const from = new Float32Array(this.#kept.length + samples.length);
    from.set(this.#kept);
    from.set(samples, this.#kept.length);
    const to = [];
    for (; Math.floor(this.#at) + this.#half + 1 < from.length; this.#at += this.#step) {
      let start = Math.floor(this.#at);
      let phase = Math.round((this.#at - start) * PHASES);
      if (phase === PHASES) [start, phase] = [start + 1, 0];
      const taps = this.#taps[phase];
      let sum = 0;
      for (let n = 0, i = start - this.#half + 1; n < taps.length; n++, i++) sum += taps[n] * from[i];
      to.push(sum);
    }
    const done = Math.max(0, Math.min(from.length, Math.floor(this.#at) - this.#half + 1));
    this.#kept = from.slice(done);
    this.#at -= done;
    return Float32Array.from(to);
  }
}

/** The filter's taps for a sample that lies `offset` behind the middle one. */
function kernel(half, offset, band) {
  const taps = Float32Array.from({ length: 2 * half }, (_, n) => {
    const x = n - half + 1 - offset;
    const angle = Math.PI * x * band;
    const window = 0.5 + 0.5 * Math.cos((Math.PI * x) / half);
    return Math.abs(x) > half ? 0 : (angle ? Math.sin(angle) / angle : 1) * window;
  });
  const sum = taps.reduce((a, b) => a + b);
  return taps.map((tap) => tap / sum);
}

/** Posts each 20 ms of the microphone as an ArrayBuffer. */
class Microphone extends AudioWorkletProcessor {
  #resampler;
  #frame;
  #filled = 0;

  constructor({ processorOptions: { rate } }) {
    super();
    this.#resampler = new Resampler(sampleRate, rate);
    this.#frame = new Int16Array(rate * FRAME_S);
  }

  process([[input]]) {
    for (const sample of input ? this.#resampler.push(input) : []) {
      this.#frame[this.#filled++] = 32767 * Math.max(-1, Math.min(1, sample));
      if (this.#filled < this.#frame.length) continue;
      const full = this.#frame;
      this.#frame = new Int16Array(full.length);
      this.#filled = 0;
      this.port.postMessage(full.buffer, [full.buffer]);
    }
    return true;
  }
}

/** Plays `{audio}` in order; posts the name of each `{mark, delayS}` when what came before it has
 *  been heard; `{clear}` drops both. `delayS`: from here to the loudspeaker. */
class Speaker extends AudioWorkletProcessor {
  #resampler;
  #queue = []; // Float32Array to play, or {mark, delayS}
  #queued = 0; // samples in it
  #waited = 0;
  #playing = false;
  #level = 0; // the last sample: silence begins from there, without a click
  #due = []; // marks that are on their way to the loudspeaker

  constructor({ processorOptions: { rate } }) {
    super();
    this.#resampler = new Resampler(rate, sampleRate);
    this.port.onmessage = ({ data }) => this.#take(data);
  }

  #take({ audio, mark, delayS = 0, clear }) {
    if (audio) {
      const samples = this.#resampler.push(Float32Array.from(new Int16Array(audio), (s) => s / 32768));
      this.#queue.push(samples);
      this.#queued += samples.length;
    } else if (mark !== undefined) this.#queue.push({ mark, delayS });
    else if (clear) {
      this.#queue = [];
      this.#queued = 0;
      this.#resampler.reset();
    }
  }

  process(_, [[output]]) {
    const start = START_S * sampleRate;
    if (!this.#playing && this.#queued) {
      this.#waited += output.length;
      this.#playing = this.#queued >= start || this.#waited >= start;
    }
    let filled = 0;
    while (this.#queue.length && filled < output.length) {
      const next = this.#queue[0];
      if (next instanceof Float32Array) {
        if (!this.#playing) break;
        const part = next.subarray(0, output.length - filled);
        output.set(part, filled);
        filled += part.length;
        this.#queued -= part.length;
        if (part.length < next.length) this.#queue[0] = next.subarray(part.length);
        else this.#queue.shift();
      } else {
        this.#due.push({ mark: next.mark, at: currentFrame + filled + next.delayS * sampleRate });
        this.#queue.shift();
      }
    }
    if (!this.#queued) [this.#playing, this.#waited] = [false, 0];
    if (filled) this.#level = output[filled - 1];
    for (; filled < output.length; filled++) output[filled] = this.#level *= 0.99;
    while (this.#due.length && this.#due[0].at <= currentFrame + output.length) {
      this.port.postMessage(this.#due.shift().mark);
    }
    return true;
  }
}

registerProcessor("switchroom-microphone", Microphone);
registerProcessor("switchroom-speaker", Speaker);
