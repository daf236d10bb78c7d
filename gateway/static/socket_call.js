// A call over a WebSocket, in place of a room: the same as Conversation in call.js.

import { Problem } from "./call.js";
import { connect } from "./switchroom.js";

export class SocketConversation {
  #on;
  #left = false;
  #session;
  #meters = {};

  constructor(on) {
    this.#on = on;
  }

  async join({ url, token }, track, _voice, transcript) {
    this.#on.state("ringing");
    try {
      this.#session = await connect({
        // PUBLIC_URL may be another name of this gateway; the page's policy permits its own alone.
        url: new URL(new URL(url).pathname, location.origin),
        token,
        track,
        onTranscript: (words) => transcript.hear(words),
        onClear: ({ text }) => transcript.correct(text),
        onState: (state) => this.#on.state(state),
        onEnd: () => this.#on.over(),
      });
    } catch (error) {
      if (this.#left) return this.#on.over();
      throw new Problem(`The session cannot be opened: ${error.message}`);
    }
    if (this.#left) return this.leave();
    const { context, microphone, speaker } = this.#session.audio;
    this.#meters = { own: meter(context, microphone), agent: meter(context, speaker) };
    context.onstatechange = () => this.#on.muffled(context.state === "suspended");
    context.onstatechange();
  }

  /** Loudness of both sides, 0 to 1. */
  get levels() {
    return { own: this.#meters.own?.() ?? 0, agent: this.#meters.agent?.() ?? 0 };
  }

  async mute(muted) {
    this.#session?.mute(muted);
  }

  async playSound() {
    await this.#session?.playSound();
  }

  async leave() {
    this.#left = true;
    this.#session?.end();
  }
}

/** Returns a function that measures a node's loudness. */
function meter(context, node) {
  const analyser = new AnalyserNode(context, { fftSize: 1024 });
  const samples = new Float32Array(analyser.fftSize);
  node.connect(analyser);
  return () => {
    analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
    return Math.min(1, 4 * Math.sqrt(power));
  };
}
