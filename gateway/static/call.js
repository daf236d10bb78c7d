// One call with an agent: its record and room from the gateway, its audio from LiveKit.
// socket_call.js has the same over a WebSocket.

const AGENT_STATE = "lk.agent.state";
const AGENT_WITHIN_MS = 25_000; // longer than the gateway waits for the agent
const AGENT_BACK_WITHIN_MS = 10_000;

/** An error to show to the visitor. `code`: the gateway's error code, if the gateway refused. */
export class Problem extends Error {
  constructor(message, code = "") {
    super(message);
    this.code = code;
  }
}

export class Gateway {
  /** `token`: empty if the gateway requires none. */
  constructor(token) {
    this.token = token;
  }

  async open(agentId) {
    return this.#ask("/v1/calls/web", { method: "POST", body: JSON.stringify({ agentId }) });
  }

  /** Opens a session for a WebSocket, in place of a room. */
  async openSession(agentId) {
    const path = `/v1/agents/${encodeURIComponent(agentId)}/session`;
    return this.#ask(path, { method: "POST", body: "{}" });
  }

  /** Returns the call's record. */
  async record(callId) {
    return this.#ask(`/v1/calls/${encodeURIComponent(callId)}`);
  }

  /** Returns the record once the call has ended, or after 10 seconds. */
  async outcome(callId) {
    return this.#ask(`/v1/calls/${encodeURIComponent(callId)}?wait=true&timeout=10`);
  }

  /** Ends a call that was hung up before it was joined. */
  async end(callId) {
    return this.#ask(`/v1/calls/${encodeURIComponent(callId)}/end`, { method: "POST" });
  }

  async #ask(path, options = {}) {
    const headers = { "Content-Type": "application/json" };
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    let response, body;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
      body = await response.json();
    } catch {
      throw new Problem("The gateway cannot be reached.");
    }
    if (response.ok) return body;
    throw new Problem(body.error?.message ?? `The gateway answered ${response.status}.`, body.error?.code);
  }
}

/** Returns the microphone's track. */
export async function microphone() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Problem("Browsers allow the microphone only on pages over https or on localhost. " +
      "Open this page that way.");
  }
  try {
    const audio = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    return (await navigator.mediaDevices.getUserMedia({ audio })).getAudioTracks()[0];
  } catch (error) {
    throw new Problem({
      NotAllowedError: "The microphone is blocked for this page. Allow it, next to the address or " +
        "in the browser's settings, and start again.",
      NotFoundError: "No microphone was found. Connect one and start again.",
      NotReadableError: "The microphone is in use by another program.",
    }[error.name] ?? `The microphone cannot be used (${error.name}).`);
  }
}

/**
 * The visitor's time in the room, from join to leave. `on` has callbacks: `state(name)`;
 * `muffled(yes)` when the browser requires a click before it plays sound; `over()`, called once.
 */
export class Conversation {
  #sdk = window.LivekitClient;
  #on;
  #timer;
  #connected = false;
  #own; // analysers of the loudness
  #agent;

  constructor(on) {
    this.#on = on;
    this.#sdk.setLogLevel("warn");
    this.room = new this.#sdk.Room();
  }

  async join({ livekitUrl, accessToken }, track, voice, transcript) {
    transcript.listen(this.room);
    const { RoomEvent, Track } = this.#sdk;
    this.room
      .on(RoomEvent.TrackSubscribed, (remote) => {
        if (remote.kind !== Track.Kind.Audio) return;
        remote.attach(voice);
        this.#agent?.cleanup();
        this.#agent = this.#sdk.createAudioAnalyser(remote);
        this.#look();
      })
      .on(RoomEvent.ParticipantConnected, () => this.#look())
      .on(RoomEvent.ParticipantAttributesChanged, () => this.#look())
      .on(RoomEvent.ParticipantDisconnected, () => this.#look())
      .on(RoomEvent.AudioPlaybackStatusChanged, () => this.#on.muffled(!this.room.canPlaybackAudio))
      .on(RoomEvent.Reconnecting, () => this.#on.state("reconnecting"))
      .on(RoomEvent.Reconnected, () => this.#look())
      .on(RoomEvent.Disconnected, () => this.#left());
    try {
      await this.room.connect(livekitUrl, accessToken);
      this.#connected = true;
      this.#look();
      const published = await this.room.localParticipant.publishTrack(track, {
        source: Track.Source.Microphone,
      });
      this.#own = this.#sdk.createAudioAnalyser(published.track);
    } catch (error) {
      if (!this.#connected) {
        throw new Problem(`LiveKit cannot be reached at ${livekitUrl}: ${error.message}`);
      }
      await this.leave(); // hung up or disconnected while joining
    }
  }

  /** Loudness of both sides, 0 to 1. */
  get levels() {
    return { own: this.#own?.calculateVolume() ?? 0, agent: this.#agent?.calculateVolume() ?? 0 };
  }

  async mute(muted) {
    await this.room.localParticipant.setMicrophoneEnabled(!muted);
  }

  async playSound() {
    await this.room.startAudio();
  }

  async leave() {
    await this.room.disconnect();
  }

  /** Reports the agent's state; leaves the call if there is no agent for too long. */
  #look() {
    if (!this.#connected) return;
    const agent = [...this.room.remoteParticipants.values()].find((other) => other.isAgent);
    const state = agent?.attributes[AGENT_STATE];
    const talks = ["listening", "thinking", "speaking"].includes(state);
    if (agent) this.met = true;
    if (talks) {
      clearTimeout(this.#timer);
      this.#timer = undefined;
    } else {
      const patience = this.met && !agent ? AGENT_BACK_WITHIN_MS : AGENT_WITHIN_MS;
      this.#timer ??= setTimeout(() => this.leave(), patience);
    }
    this.#on.state(talks ? state : "ringing");
  }

  #left() {
    clearTimeout(this.#timer);
    this.#own?.cleanup();
    this.#agent?.cleanup();
    if (this.#connected) this.#on.over();
  }
}
