// switchroom.js: one session over several sockets.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { product } from "./product.mjs";

const { Wire } = await product("switchroom.js");

let sockets;

class FakeSocket {
  bufferedAmount = 0;
  sent = [];

  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    sockets.push(this);
  }

  send(data) { this.sent.push(typeof data === "string" ? JSON.parse(data) : data); }
  close(code) { this.closedWith = code ?? 1005; }

  say(message) { this.onmessage({ data: JSON.stringify(message) }); }
  lose(code = 1006) { this.onclose({ code, reason: "" }); }

  /** Opens, and is ready. */
  accept(token) {
    this.onopen();
    this.say({ type: "ready", seq: 1, sessionId: "call_1", resumeToken: token });
  }
}

let told;
const on = new Proxy({}, { get: (_, name) => (what) => told.push([name, what]) });

function connected() {
  const wire = new Wire("ws://gateway/v1/agents/a/session", "first", { type: "session.update" }, on);
  sockets[0].accept("second");
  told = [];
  return wire;
}

const newest = () => sockets.at(-1);
const tick = (ms) => { for (; ms > 0; ms -= 50) mock.timers.tick(50); };

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });
  globalThis.WebSocket = FakeSocket;
  [sockets, told] = [[], []];
});

test("the token travels beside the address, and the first message says what is wanted", () => {
  connected();
  const [socket] = sockets;
  assert.equal(socket.url, "ws://gateway/v1/agents/a/session");
  assert.deepEqual(socket.protocols, ["switchroom", "token.first"]);
  assert.deepEqual(socket.sent, [{ type: "session.update" }]);
});

test("a lost socket is followed by another, which resumes after the last event", () => {
  const wire = connected();
  sockets[0].say({ type: "state", seq: 2, state: "speaking" });
  sockets[0].say({ type: "transcript", seq: 3, role: "agent", text: "Hello" });
  told = [];
  sockets[0].lose();
  assert.deepEqual(told, [["state", "reconnecting"]]);
  wire.send({ type: "text", text: "said in between" });
  wire.send({ type: "mark", name: "g1.1" });
  wire.audio(new ArrayBuffer(640));
  tick(400);
  assert.equal(sockets.length, 2);
  assert.deepEqual(newest().protocols, ["switchroom", "token.second"]);
  newest().accept("third");
  const resume = { type: "resume", sessionId: "call_1", lastSeq: 3 };
  assert.deepEqual(newest().sent, [resume, { type: "text", text: "said in between" }]);
  assert.deepEqual(told.at(-1), ["state", "speaking"]);
  newest().lose();
  tick(400);
  assert.deepEqual(newest().protocols, ["switchroom", "token.third"]);
});

test("an event that is sent again is told once", () => {
  connected();
  const words = { type: "transcript", seq: 2, role: "user", text: "Hi" };
  sockets[0].say(words);
  sockets[0].lose();
  tick(400);
  newest().accept("third");
  newest().say(words);
  newest().say({ ...words, seq: 3, text: "there" });
  assert.deepEqual(told.filter(([name]) => name === "transcript").map(([, { text }]) => text), ["Hi", "there"]);
});

test("what was missed comes before ready, and is told", () => {
  connected();
  sockets[0].lose();
  tick(400);
  newest().onopen();
  newest().say({ type: "state", seq: 4, state: "listening" });
  assert.deepEqual(told.at(-1), ["state", "listening"]);
  newest().say({ type: "ready", seq: 9, sessionId: "call_1", resumeToken: "third" });
  newest().lose();
  tick(400);
  newest().onopen();
  assert.equal(newest().sent[0].lastSeq, 4);
});

test("it tries for 30 seconds, more and more seldom, and then gives up", () => {
  connected();
  sockets[0].lose();
  for (let at = 0; at < 60_000; at += 50) {
    tick(50);
    if (newest() !== sockets[0] && !newest().lost) {
      newest().lost = true;
      newest().lose();
    }
  }
  assert.ok(sockets.length > 8 && sockets.length < 20, `${sockets.length}`);
  const ends = told.filter(([name]) => name === "end");
  assert.deepEqual(ends.map(([, { reason, code }]) => [reason, code]), [["connection_lost", 1006]]);
});

test("a reader that stalled comes back: the session waits for it", () => {
  connected();
  sockets[0].lose(1013);
  tick(400);
  assert.equal(sockets.length, 2);
});

for (const code of [1000, 1007, 1008, 4404, 4409]) {
  test(`it does not come back after ${code}`, () => {
    connected();
    sockets[0].say({ type: "error", seq: 2, code: "X", message: "the reason" });
    sockets[0].lose(code);
    tick(5_000);
    assert.equal(sockets.length, 1);
    assert.deepEqual(told.at(-1), ["end", { reason: "connection_lost", code, message: "the reason" }]);
  });
}

test("a session that was never ready is not resumed", () => {
  new Wire("ws://gateway", "first", { type: "session.update" }, on);
  sockets[0].lose();
  assert.equal(told.at(-1)[0], "end");
  tick(5_000);
  assert.equal(sockets.length, 1);
});

test("a server that is silent is left for another socket, one that answers is kept", () => {
  connected();
  for (let n = 0; n < 5; n++) {
    tick(4_000);
    sockets[0].say({ type: "pong", seq: 2 + n });
  }
  assert.equal(sockets.length, 1);
  assert.ok(sockets[0].sent.filter(({ type }) => type === "ping").length >= 4);
  tick(13_000);
  assert.equal(sockets[0].closedWith, 4000, "a close without a code would end the call");
  assert.equal(sockets.length, 2);
});

test("an attempt that nobody answers does not use up the time", () => {
  connected();
  sockets[0].lose();
  tick(28_000);
  assert.ok(sockets.length >= 3, `${sockets.length}`);
});

test("the end is told once, and what was said last is still sent", () => {
  const wire = connected();
  wire.end();
  wire.end();
  assert.deepEqual(sockets[0].sent.at(-1), { type: "end" });
  assert.equal(sockets[0].closedWith, 1000);
  sockets[0].say({ type: "ended", seq: 2, reason: "user_hangup" });
  sockets[0].lose(1000);
  assert.deepEqual(told, [["end", { reason: "user_hangup" }]]);
});

test("the agent's end is told with its reason", () => {
  connected();
  sockets[0].say({ type: "ended", seq: 2, reason: "agent_hangup" });
  assert.deepEqual(told, [["end", { reason: "agent_hangup" }]]);
  tick(60_000);
  assert.equal(sockets.length, 1);
});

test("speech that the network does not take is dropped, not sent late", () => {
  const wire = connected();
  wire.audio(new ArrayBuffer(640));
  sockets[0].bufferedAmount = 16_000;
  wire.audio(new ArrayBuffer(640));
  assert.equal(sockets[0].sent.filter((data) => data instanceof ArrayBuffer).length, 1);
});
