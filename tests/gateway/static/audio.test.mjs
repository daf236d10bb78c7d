// switchroom-audio.js: what an AudioWorklet would run, block by block.

import assert from "node:assert/strict";
import { test } from "node:test";

import { product } from "./product.mjs";

const BLOCK = 128;
const RATE = 16_000;
const processors = {};
globalThis.registerProcessor = (name, type) => { processors[name] = type; };
globalThis.AudioWorkletProcessor = class {
  port = { posted: [], postMessage(data) { this.posted.push(data); } };
};
globalThis.sampleRate = 48_000;
globalThis.currentFrame = 0;
const { Resampler } = await product("switchroom-audio.js");

function make(name) {
  return new processors[name]({ processorOptions: { rate: RATE } });
}

const tone = (hz, rate, seconds) =>
  Float32Array.from({ length: rate * seconds }, (_, n) => 0.5 * Math.sin((2 * Math.PI * hz * n) / rate));

const pcm = (samples) => Int16Array.from(samples, (sample) => 32767 * sample).buffer;

/** The loudness of one frequency in `samples`, 0.5 for a tone as above. */
function loudness(samples, hz, rate) {
  let [re, im] = [0, 0];
  samples.forEach((sample, n) => {
    re += sample * Math.cos((2 * Math.PI * hz * n) / rate);
    im += sample * Math.sin((2 * Math.PI * hz * n) / rate);
  });
  return (2 * Math.hypot(re, im)) / samples.length;
}

function inBlocks(resampler, samples) {
  const out = [];
  for (let n = 0; n < samples.length; n += BLOCK) out.push(...resampler.push(samples.subarray(n, n + BLOCK)));
  return Float32Array.from(out);
}

/** Plays `seconds`; returns what sounded and the frame at which each mark was posted. */
function play(speaker, seconds) {
  const sounded = [];
  const marks = [];
  for (let n = 0; n < seconds * sampleRate; n += BLOCK) {
    const output = new Float32Array(BLOCK);
    speaker.port.posted = [];
    speaker.process([], [[output]]);
    sounded.push(...output);
    for (const mark of speaker.port.posted) marks.push([mark, n]);
    globalThis.currentFrame += BLOCK;
  }
  return { sounded: Float32Array.from(sounded), marks };
}

for (const [from, to] of [[48_000, RATE], [44_100, RATE], [RATE, 48_000], [RATE, 44_100], [RATE, RATE]]) {
  test(`${from} to ${to} Hz keeps speech, and its length`, () => {
    const out = inBlocks(new Resampler(from, to), tone(1_000, from, 1));
    assert.ok(Math.abs(out.length - to) < 40, `${out.length}`);
    const middle = out.subarray(1_000, out.length - 1_000);
    const cycles = Math.floor(middle.length / (to / 100)) * (to / 100); // whole periods
    assert.ok(Math.abs(loudness(middle.subarray(0, cycles), 1_000, to) - 0.5) < 0.005);
  });
}

test("what 16 kHz cannot carry does not come back as another tone", () => {
  const out = inBlocks(new Resampler(48_000, RATE), tone(11_000, 48_000, 1));
  assert.ok(loudness(out.subarray(1_000, 15_000), 5_000, RATE) < 0.005);
});

test("the microphone comes as 20 ms of s16le, and does not wrap round", () => {
  const microphone = make("switchroom-microphone");
  const loud = tone(500, sampleRate, 1).map((sample) => 4 * sample);
  for (let n = 0; n < loud.length; n += BLOCK) {
    assert.ok(microphone.process([[loud.subarray(n, n + BLOCK)]]));
  }
  const frames = microphone.port.posted;
  assert.ok(frames.length >= 49 && frames.every((frame) => frame.byteLength === 640));
  const samples = frames.flatMap((frame) => [...new Int16Array(frame)]);
  assert.equal(Math.max(...samples), 32767);
  const steps = samples.slice(1).map((sample, n) => Math.abs(sample - samples[n]));
  assert.ok(Math.max(...steps) < 30_000, "a wrapped sample is a step of 65535");
  assert.ok(microphone.process([[]]), "no microphone yet");
});

test("what is queued sounds in order and whole, and its mark comes when it was heard", () => {
  const speaker = make("switchroom-speaker");
  for (const hz of [500, 1_000]) speaker.port.onmessage({ data: { audio: pcm(tone(hz, RATE, 0.1)) } });
  speaker.port.onmessage({ data: { mark: "g1.1", delayS: 0.05 } });
  speaker.port.onmessage({ data: { audio: pcm(tone(2_000, RATE, 0.1)) } });
  speaker.port.onmessage({ data: { mark: "g1.2", delayS: 0.05 } });
  const { sounded, marks } = play(speaker, 0.5);
  const part = (at) => sounded.subarray(at * sampleRate, (at + 0.08) * sampleRate);
  [500, 1_000, 2_000].forEach((hz, n) => {
    assert.ok(loudness(part(n / 10 + 0.01), hz, sampleRate) > 0.48, `${hz} Hz`);
  });
  assert.ok(Math.max(...part(0.35)) < 0.001, "silence afterwards");
  assert.deepEqual(marks.map(([name]) => name), ["g1.1", "g1.2"]);
  [0.25, 0.35].forEach((due, n) => assert.ok(Math.abs(marks[n][1] / sampleRate - due) < 0.01));
});

test("the first packet waits for a second one, but not for long", () => {
  const speaker = make("switchroom-speaker");
  speaker.port.onmessage({ data: { audio: pcm(tone(500, RATE, 0.02)) } });
  const { sounded } = play(speaker, 0.1);
  const first = sounded.findIndex((sample) => Math.abs(sample) > 0.01) / sampleRate;
  assert.ok(first > 0.03 && first < 0.05, `${first}`);
});

test("a clear silences at once, without a click, and its marks do not come", () => {
  const speaker = make("switchroom-speaker");
  speaker.port.onmessage({ data: { audio: pcm(tone(500, RATE, 1)) } });
  speaker.port.onmessage({ data: { mark: "g1.1" } });
  const before = play(speaker, 0.101).sounded;
  speaker.port.onmessage({ data: { clear: true } });
  const { sounded, marks } = play(speaker, 1.5);
  assert.ok(Math.max(...sounded.subarray(0.02 * sampleRate)) < 0.001);
  assert.ok(Math.abs(before.at(-1)) > 0.2, "cleared amid a wave");
  assert.ok(sounded.every((sample, n) => Math.abs(sample - (n ? sounded[n - 1] : before.at(-1))) < 0.04));
  assert.deepEqual(marks, []);
  speaker.port.onmessage({ data: { audio: pcm(tone(500, RATE, 0.2)) } });
  assert.ok(loudness(play(speaker, 0.2).sounded, 500, sampleRate) > 0.4, "the next words sound");
});

test("a mark that nothing came before is answered at once", () => {
  const speaker = make("switchroom-speaker");
  speaker.port.onmessage({ data: { mark: "g1.1" } });
  assert.deepEqual(play(speaker, 0.01).marks, [["g1.1", 0]]);
});
