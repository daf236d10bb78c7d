// Talk to an agent of Switchroom from a browser, over one WebSocket.
//
//   import { connect } from "./switchroom.js";  // beside it: switchroom-audio.js
//   const session = await connect({
//     mint: async () => (await fetch("/my-server/session", { method: "POST" })).json(),
//     onTranscript: ({ role, text, final }) => …,
//     onEnd: ({ reason }) => …,
//   });
//   session.text("Hello"); session.press("1#"); session.interrupt(); session.end();
//
// `mint` asks your server, which asks POST /v1/agents/{id}/session with its API token and passes the
// answer on: {sessionId, token, url}. In place of `mint`: `url` (of the session; or of the gateway,
// and `agentId`) and `token`. The protocol is described in docs/sessions.md.

const RATE = 16_000;
const RESUME_WITHIN_MS = 30_000; // the server keeps a session for so long without a socket
const RETRY_MS = [250, 500, 1_000, 2_000, 3_000]; // the last one is repeated
const PING_MS = 4_000;
const QUIET_MS = 8_000; // a socket that has said nothing for so long is dead
const UNSENT_BYTES = RATE; // half a second of speech; more of it is dropped, not sent late
const PASSING = new Set(["mark", "ping"]); // messages about a moment, not sent later
const LOST = 4_000; // close code: another socket will come
const FINAL = new Set([1000, 1007, 1008, 4404, 4409]); // close codes after which resuming is pointless

/** `code`: the close code of the socket, the server's error code, or the microphone's error name. */
export class SessionError extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

/**
 * Opens the microphone and a session; returns it when the agent is there. Rejects with SessionError.
 * Options besides those above: `variables`; `track`, your own microphone; `context`, your own
 * AudioContext. Callbacks: onTranscript({role, text, final}), onState(name),
 * onClear({audioEndMs, text}), onToolCall({id, name, arguments}), onError({code, message}), and once
 * onEnd({reason, code}). States: listening, thinking, speaking, reconnecting.
 */
export async function connect(options) {
  const sound = await Sound.open(options);
  try {
    const { url, token } = options.mint ? await options.mint() : options;
    const session = new Session(address(url, options.agentId), token, sound, options);
    return await session.ready;
  } catch (error) {
    sound.close();
    throw error;
  }
}

export class Session {
  /** The session's id, which is the call's. */
  id;
  #wire;
  #sound;

  constructor(url, token, sound, on) {
    this.#sound = sound;
    const first = { type: "session.update", ...(on.variables && { variables: on.variables }) };
    const leave = () => this.end(); // a page that is left does not come back
    addEventListener("pagehide", leave);
    this.ready = new Promise((resolve, reject) => {
      this.#wire = new Wire(url, token, first, {
        audio: (data) => sound.play(data),
        ready: ({ sessionId }) => {
          this.id = sessionId;
          sound.capture((frame) => this.#wire.audio(frame));
          resolve(this);
        },
        transcript: on.onTranscript,
        state: (name) => {
          if (name === "reconnecting") sound.clear(); // the server goes on from what was heard
          on.onState?.(name);
        },
        mark: ({ name }) => sound.mark(name, () => this.#wire.send({ type: "mark", name })),
        clear: (event) => {
          sound.clear();
          on.onClear?.(event);
        },
        tool_call: on.onToolCall,
        error: on.onError,
        end: (how) => {
          removeEventListener("pagehide", leave);
          sound.close();
          if (this.id) on.onEnd?.(how);
          else reject(new SessionError(how.message ?? "The session was not opened.", how.code));
        },
      });
    });
  }

  /** Says something to the agent in writing. */
  text(text) {
    this.#wire.send({ type: "text", text });
  }

  /** Presses keys: 0-9 * #. */
  press(digits) {
    for (const digit of digits) this.#wire.send({ type: "dtmf", digit });
  }

  /** Stops the agent's speech. */
  interrupt() {
    this.#wire.send({ type: "interrupt" });
  }

  /** Hangs up. */
  end() {
    this.#wire.end();
  }

  mute(muted) {
    this.#sound.track.enabled = !muted;
  }

  /** Browsers play no sound before the first click on a page: call this in a click's handler. */
  async playSound() {
    await this.#sound.context.resume();
  }

  /** {context, microphone, speaker}: the AudioContext and two nodes of it, to measure levels. */
  get audio() {
    return this.#sound;
  }
}

/** A session's events and frames, over as many sockets as it takes. Of a browser it needs WebSocket
 *  alone. `on`: callbacks by the event's type; `state(name)`; `audio(data)`; `end(how)`, once. */
export class Wire {
  #url;
  #token;
  #first;
  #on;
  #socket;
  #id; // from the first "ready" on
  #seq = 0;
  #lostAt; // set while there is no socket
  #tries;
  #unsent = []; // messages from that time
  #heardAt;
  #checking;
  #retry;
  #state;
  #fault; // the server's last error: the reason if it closes then
  #over = false;

  constructor(url, token, first, on) {
    this.#url = url;
    this.#token = token;
    this.#first = first;
    this.#on = on;
    this.#dial();
    this.#checking = setInterval(() => this.#check(), PING_MS);
  }

  audio(frame) {
    if (this.#connected && this.#socket.bufferedAmount < UNSENT_BYTES) this.#socket.send(frame);
  }

  send(message) {
    if (this.#connected) this.#socket.send(JSON.stringify(message));
    else if (!PASSING.has(message.type)) this.#unsent.push(message);
  }

  /** A session that has no socket at the moment ends at the server after RESUME_WITHIN_MS. */
  end() {
    if (this.#connected) this.send({ type: "end" });
    this.#finish({ reason: "user_hangup" });
  }

  get #connected() {
    return this.#id !== undefined && this.#lostAt === undefined && !this.#over;
  }

  #dial() {
    const socket = (this.#socket = new WebSocket(this.#url, ["switchroom", `token.${this.#token}`]));
    const current = (act) => (event) => this.#socket === socket && !this.#over && act(event);
    socket.binaryType = "arraybuffer";
    this.#heardAt = Date.now();
    socket.onopen = current(() => {
      const resume = { type: "resume", sessionId: this.#id, lastSeq: this.#seq };
      socket.send(JSON.stringify(this.#id === undefined ? this.#first : resume));
    });
    socket.onmessage = current(({ data }) => {
      this.#heardAt = Date.now();
      if (typeof data === "string") this.#take(JSON.parse(data));
      else this.#on.audio(data);
    });
    socket.onclose = current(({ code, reason }) => this.#closed(code, reason));
  }

  #take(event) {
    if (event.type === "ready") return this.#ready(event);
    if (event.seq <= this.#seq) return; // sent again, and not lost the first time
    this.#seq = event.seq ?? this.#seq;
    if (event.type === "ended") return this.#finish({ reason: event.reason });
    if (event.type === "state") return this.#on.state?.((this.#state = event.state));
    if (event.type === "error") this.#fault = event;
    this.#on[event.type]?.(event);
  }

  #ready(event) {
    this.#token = event.resumeToken;
    const resumed = this.#id !== undefined;
    this.#id = event.sessionId;
    this.#lostAt = undefined;
    if (!resumed) return this.#on.ready(event);
    for (const message of this.#unsent.splice(0)) this.send(message);
    if (this.#state) this.#on.state?.(this.#state);
  }

  /** TCP may take minutes to see that a network is gone. */
  #check() {
    if (this.#socket && Date.now() - this.#heardAt > QUIET_MS) {
      this.#socket.close(LOST); // without a code it would hang up, should it arrive
      this.#closed(1006, "The server is silent.");
    } else this.send({ type: "ping" });
  }

  #closed(code, reason) {
    const message = this.#fault?.message ?? reason;
    const now = Date.now();
    if (this.#connected) [this.#lostAt, this.#tries] = [now, 0];
    const delay = RETRY_MS[Math.min(this.#tries++, RETRY_MS.length - 1)] * (0.75 + Math.random() / 2);
    const hopeless = this.#id === undefined || FINAL.has(code);
    if (hopeless || now + delay - this.#lostAt > RESUME_WITHIN_MS) {
      return this.#finish({ reason: "connection_lost", code, message });
    }
    this.#socket = undefined;
    this.#retry = setTimeout(() => this.#dial(), delay);
    this.#on.state?.("reconnecting");
  }

  #finish(how) {
    if (this.#over) return;
    this.#over = true;
    clearInterval(this.#checking);
    clearTimeout(this.#retry);
    this.#socket?.close(1000);
    this.#on.end(how);
  }
}

/** The microphone and the loudspeaker. */
class Sound {
  #frames;
  #marks = new Map(); // name: what to do when it has been heard
  #owned = []; // how to close what was opened here

  static async open({ context, track }) {
    const sound = new Sound();
    try {
      sound.track = track ?? (await microphone());
      if (!track) sound.#owned.push(() => sound.track.stop());
      sound.context = context ?? new AudioContext({ latencyHint: "interactive" });
      if (!context) sound.#owned.push(() => sound.context.close());
      sound.context.resume().catch(() => {}); // waits for a click, where none was: see playSound
      await sound.context.audioWorklet.addModule(new URL("./switchroom-audio.js", import.meta.url));
      sound.#connect();
    } catch (error) {
      sound.close();
      throw error;
    }
    return sound;
  }

  #connect() {
    const node = (name, inputs) =>
      new AudioWorkletNode(this.context, name, {
        numberOfInputs: inputs,
        numberOfOutputs: 1 - inputs,
        channelCount: 1,
        channelCountMode: "explicit",
        processorOptions: { rate: RATE },
      });
    this.microphone = this.context.createMediaStreamSource(new MediaStream([this.track]));
    this.speaker = node("switchroom-speaker", 0);
    this.speaker.connect(this.context.destination);
    this.speaker.port.onmessage = ({ data: name }) => {
      this.#marks.get(name)?.();
      this.#marks.delete(name);
    };
    this.#frames = node("switchroom-microphone", 1);
    this.#owned.push(() => [this.microphone, this.speaker].forEach((each) => each.disconnect()));
  }

  /** Calls `take` with each 20 ms of the microphone. */
  capture(take) {
    this.#frames.port.onmessage = ({ data }) => take(data);
    this.microphone.connect(this.#frames);
  }

  /** Drops what comes while the browser permits no sound: it would be late afterwards. */
  play(audio) {
    if (this.context.state === "running") this.speaker.port.postMessage({ audio }, [audio]);
  }

  /** Calls `heard` when everything up to here has been heard; never, if it is cleared before. */
  mark(name, heard) {
    this.#marks.set(name, heard);
    this.speaker.port.postMessage({ mark: name, delayS: this.context.outputLatency ?? 0 });
  }

  clear() {
    this.#marks.clear();
    this.speaker.port.postMessage({ clear: true });
  }

  close() {
    for (const close of this.#owned.splice(0).reverse()) close();
  }
}

async function microphone() {
  const audio = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
  try {
    return (await navigator.mediaDevices.getUserMedia({ audio })).getAudioTracks()[0];
  } catch (error) {
    // Without https, or localhost, there are no mediaDevices.
    throw new SessionError(`The microphone cannot be used (${error.name}).`, error.name);
  }
}

/** Returns the WebSocket address of the session: `url` itself, or the agent's at the gateway `url`. */
function address(url = location.origin, agentId) {
  const found = new URL(url, location.href);
  if (agentId && found.pathname === "/") found.pathname = `/v1/agents/${encodeURIComponent(agentId)}/session`;
  found.protocol = found.protocol.replace("http", "ws");
  return found;
}
