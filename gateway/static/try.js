// The page: its buttons, its messages, and the call.

import { Conversation, Gateway, Problem, microphone } from "./call.js";
import { SocketConversation } from "./socket_call.js";
import { Transcript } from "./transcript.js";

const $ = (id) => document.getElementById(id);
const STATES = {
  idle: ["Ready", "Your browser will ask for the microphone."],
  microphone: ["Asking for the microphone", "Please allow it in your browser."],
  connecting: ["Connecting", "One moment, please."],
  ringing: ["Ringing", "The agent is on its way."],
  listening: ["Listening", "Go ahead, the agent hears you."],
  thinking: ["Thinking", "The agent is preparing an answer."],
  speaking: ["Speaking", "You may interrupt the agent at any time."],
  reconnecting: ["Reconnecting", "The connection was lost for a moment."],
  ended: ["Call ended", ""],
};
const REASONS = {
  user_hangup: "You hung up.",
  agent_hangup: "The agent hung up.",
  call_transfer: "The call was transferred.",
  inactivity: "Nobody said anything for too long.",
  max_duration_reached: "The call reached its time limit.",
  agent_unavailable: "No agent could take the call.",
  agent_error: "Something failed on the agent's side.",
  canceled: "The call ended before it was answered.",
};
const TOKEN = "switchroom.token";
const WAITING = new Set(["microphone", "connecting", "ringing"]);

const agentId = decodeURIComponent(location.pathname.split("/").pop());
const transcript = new Transcript({ list: $("lines"), empty: $("empty"), said: $("said") });
let call = null; // {track, conversation?, hungUp?, since?} from the first click to the end

function say(state, hint = STATES[state][1]) {
  document.body.dataset.state = state;
  $("status").textContent = STATES[state][0];
  $("hint").textContent = hint;
  const calling = state !== "idle" && state !== "ended";
  $("start").hidden = calling;
  $("start").textContent = state === "ended" ? "Call again" : "Start the call";
  $("via").hidden = calling;
  $("hangup").hidden = !calling || state === "microphone";
  $("mute").hidden = $("meter").hidden = !calling || WAITING.has(state);
  if (!calling) $("sound").hidden = true;
}

function complain(message) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
}

function askForToken(message) {
  $("access").hidden = false;
  complain(message);
  $("token").focus();
}

async function start() {
  if (call) return;
  if (!$("access").hidden && !$("access").reportValidity()) return;
  if (!$("access").hidden) sessionStorage.setItem(TOKEN, $("token").value.trim());
  complain("");
  transcript.clear();
  $("clock").hidden = true;
  const gateway = new Gateway(sessionStorage.getItem(TOKEN) ?? "");
  const mine = (call = {});
  try {
    say("microphone");
    mine.track = await microphone();
    say("connecting");
    const socket = overSocket();
    const opened = await (socket ? gateway.openSession(agentId) : gateway.open(agentId));
    $("access").hidden = true;
    mine.id = opened.callId ?? opened.sessionId;
    gateway.record(mine.id).then(({ agentName }) => entitle(agentName), () => {});
    if (mine.hungUp) return await finish(mine, gateway);
    mine.conversation = new (socket ? SocketConversation : Conversation)({
      state: (state) => call === mine && progress(mine, state),
      muffled: (yes) => { $("sound").hidden = !yes; },
      over: () => finish(mine, gateway),
    });
    await mine.conversation.join(opened, mine.track, $("voice"), transcript);
    watchLevels(mine);
  } catch (error) {
    if (mine.hungUp && mine.id) await finish(mine, gateway);
    else giveUp(mine, error);
  }
}

function progress(mine, state) {
  if (!mine.since && !WAITING.has(state)) {
    mine.since = Date.now();
    tick(mine);
  }
  say(state);
}

function giveUp(mine, error) {
  release(mine);
  say("idle");
  if (!(error instanceof Problem)) console.error(error);
  if (error.code === "MISSING_AUTH_HEADER") askForToken("This gateway asks for an API token.");
  else if (error.code === "UNAUTHORIZED" || error.code === "INVALID_AUTH_HEADER") {
    askForToken("This token is not valid, or has expired.");
  } else if (error.code === "AGENT_NOT_FOUND") complain(`There is no agent “${agentId}”.`);
  else if (error.code === "AGENT_UNAVAILABLE") complain("No agent is free. Try again in a moment.");
  else complain(error instanceof Problem ? error.message : `The call failed (${error.message}).`);
}

async function finish(mine, gateway) {
  if (mine.finished) return;
  mine.finished = true;
  const lasted = mine.since ? ` The call lasted ${duration(mine)}.` : "";
  if (mine.since) $("clock").textContent = duration(mine);
  release(mine);
  say("ended", mine.hungUp ? REASONS.user_hangup : "");
  $("start").focus();
  try {
    if (mine.hungUp && !mine.since) await gateway.end(mine.id).catch(() => {}); // it may have ended already
    const { disconnectionReason } = await gateway.outcome(mine.id);
    // A visitor who has called again must not see the outcome of the previous call.
    if (call || document.body.dataset.state !== "ended") return;
    const reason = mine.hungUp ? "user_hangup" : disconnectionReason;
    say("ended", (REASONS[reason] ?? "") + lasted);
  } catch (error) {
    complain(`The reason why the call ended is unknown: ${error.message}`);
  }
}

function release(mine) {
  mine.track?.stop();
  clearTimeout(mine.timer);
  cancelAnimationFrame(mine.frame);
  $("orb").style.setProperty("--loud", 0);
  $("level").value = 0;
  setMuted(false);
  if (call === mine) call = null;
}

function hangUp() {
  if (!call) return;
  call.hungUp = true;
  say("ended", REASONS.user_hangup);
  call.conversation?.leave();
}

function setMuted(muted) {
  $("mute").setAttribute("aria-pressed", muted);
  $("mute").textContent = muted ? "Muted" : "Mute";
}

async function toggleMute() {
  const muted = $("mute").getAttribute("aria-pressed") !== "true";
  await call?.conversation?.mute(muted);
  setMuted(muted);
}

function duration(mine) {
  const seconds = Math.round((Date.now() - mine.since) / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

function tick(mine) {
  $("clock").hidden = false;
  $("clock").textContent = duration(mine);
  mine.timer = setTimeout(() => tick(mine), 500);
}

function watchLevels(mine) {
  if (call !== mine) return;
  const { own, agent } = mine.conversation.levels;
  $("level").value = own;
  $("orb").style.setProperty("--loud", document.body.dataset.state === "speaking" ? agent : own);
  mine.frame = requestAnimationFrame(() => watchLevels(mine));
}

function entitle(name) {
  $("title").textContent = name || agentId;
  document.title = `Talk to ${name || agentId}`;
}

function overSocket() {
  return $("via").elements.socket.checked;
}

/** WebRTC needs LiveKit's library, which may be missing; the address keeps the choice. */
function choose() {
  history.replaceState(null, "", location.pathname + (overSocket() ? "?via=socket" : ""));
  const missing = !overSocket() && !window.LivekitClient;
  $("start").disabled = missing;
  say("idle", missing ? "" : undefined);
  complain(missing
    ? "LiveKit's browser library is not installed with this gateway. Run “npm ci” in its folder " +
      "and reload this page, or connect over a WebSocket."
    : "");
}

function begin() {
  entitle(agentId);
  // A token in the fragment is neither sent to a server nor logged; then remove it from the address.
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(TOKEN, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  const via = new URLSearchParams(location.search).get("via") === "socket" ? "socket" : "webrtc";
  $("via").elements[via].checked = true;
  $("via").addEventListener("change", choose);
  choose();
  $("start").addEventListener("click", start);
  $("access").addEventListener("submit", (event) => { event.preventDefault(); start(); });
  $("hangup").addEventListener("click", hangUp);
  $("mute").addEventListener("click", toggleMute);
  $("sound").addEventListener("click", () => call?.conversation?.playSound());
}

begin();
