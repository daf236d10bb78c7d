// The transcript, from LiveKit's text streams or a session's socket: the agent's words as they are
// spoken, the visitor's as they are recognized. A line is a segment; updates replace or extend it.

const TOPIC = "lk.transcription";
const SEGMENT = "lk.segment_id";
const FINAL = "lk.transcription_final";

export class Transcript {
  #lines = new Map();
  #turns = { caller: 0, agent: 0 };
  #list;
  #empty;
  #said;
  #follow = true; // unless the reader has scrolled back

  constructor({ list, empty, said }) {
    this.#list = list;
    this.#empty = empty;
    this.#said = said;
    list.addEventListener("scroll", () => {
      this.#follow = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    });
    new ResizeObserver(() => this.#scroll()).observe(list);
  }

  clear() {
    this.#lines.clear();
    this.#list.replaceChildren();
    this.#said.replaceChildren();
    this.#empty.hidden = false;
    this.#follow = true;
    this.#turns = { caller: 0, agent: 0 };
  }

  /** Must be called before the room is connected, or the first words are lost. */
  listen(room) {
    room.registerTextStreamHandler(TOPIC, (reader, { identity }) => {
      const who = identity === room.localParticipant.identity ? "caller" : "agent";
      this.#read(reader, who).catch(() => {}); // interrupted: the text read so far stays
    });
  }

  /** Shows words from a session's socket: of each side, they replace the line that is not final. */
  hear({ role, text, final }) {
    const who = role === "user" ? "caller" : role;
    const turn = this.#turns[who];
    this.#show(`${who} ${turn}`, who, text, final);
    if (final) this.#turns[who] = turn + 1;
  }

  /** Keeps of the agent's line what was heard of it before an interruption. */
  correct(text) {
    const line = this.#lines.get(`agent ${this.#turns.agent}`);
    if (line) line.words.textContent = text;
  }

  async #read(reader, who) {
    const segment = reader.info.attributes?.[SEGMENT] ?? reader.info.id;
    let text = "";
    for await (const chunk of reader) {
      text += chunk;
      this.#show(segment, who, text, false);
    }
    // The agent's line is one stream; the visitor's is sent repeatedly until it is final.
    const final = who === "agent" || reader.info.attributes?.[FINAL] === "true";
    this.#show(segment, who, text, final);
  }

  #show(segment, who, text, final) {
    if (!text.trim()) return;
    const line = this.#lines.get(segment) ?? this.#add(segment, who);
    line.words.textContent = text;
    line.item.classList.toggle("interim", !final);
    this.#empty.hidden = true;
    this.#scroll();
    if (final && !line.said) {
      line.said = true;
      this.#announce(who, text);
    }
  }

  #scroll() {
    if (this.#follow) this.#list.scrollTop = this.#list.scrollHeight;
  }

  #add(segment, who) {
    const item = document.createElement("li");
    item.className = who;
    const name = document.createElement("span");
    name.textContent = who === "agent" ? "Agent" : "You";
    const words = document.createElement("q");
    item.append(name, words);
    this.#list.append(item);
    const line = { item, words, said: false };
    this.#lines.set(segment, line);
    return line;
  }

  /** Announces whole lines to screen readers, not every word. */
  #announce(who, text) {
    const line = document.createElement("span");
    line.textContent = `${who === "agent" ? "Agent" : "You"}: ${text} `;
    this.#said.append(line);
  }
}
