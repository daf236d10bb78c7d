// The public library for Node, unchanged: node walk.mjs <base address> <token> <number id>
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { AgentPhone, AgentPhoneClient, AgentPhoneError } from "agentphone";

const [baseUrl, token, numberId] = process.argv.slice(2);
const client = new AgentPhoneClient({ baseUrl, token, maxRetries: 0 });
const { agents, calls, numbers } = client;

/** The call once `done` says so. */
async function polled(call_id, done) {
    const deadline = Date.now() + 40_000;
    for (;;) {
        const call = await calls.getCall({ call_id });
        if (done(call)) return call;
        assert.ok(Date.now() < deadline, `still ${call.status}`);
        await sleep(200);
    }
}

async function refused(promise, statusCode, message) {
    await assert.rejects(promise, (error) => {
        assert.ok(error instanceof AgentPhoneError);
        assert.equal(error.statusCode, statusCode);
        assert.match(error.message, message);
        return true;
    });
}

// --- Agents, and pages of them
const made = await agents.createAgent({
    name: "Caller",
    voiceMode: "hosted",
    systemPrompt: "Talk.",
    beginMessage: "Welcome to the corner restaurant.",
    language: "en-US",
});
const agent_id = made.id;
assert.deepEqual(await agents.getAgent({ agent_id }), made);
const changed = await agents.updateAgent({ agent_id, name: "Waiter", voiceSpeed: 1.1 });
assert.equal(changed.name, "Waiter");
assert.equal(changed.beginMessage, made.beginMessage);
const first = await agents.listAgents();
assert.equal(first.data[0].id, agent_id);
assert.notEqual((await agents.listAgents({ offset: 1 })).data[0]?.id, agent_id);

// --- Numbers
assert.equal((await numbers.listNumbers()).data[0].id, numberId);
const bound = await agents.attachNumberToAgent({ agent_id, numberId });
assert.equal(bound.number.id, numberId);
assert.equal((await numbers.getNumber({ number_id: numberId })).agentId, agent_id);
assert.deepEqual(
    (await agents.getAgent({ agent_id })).numbers.map((number) => number.id),
    [numberId],
);

// --- A call, to its end
const placed = await calls.createOutboundCall({
    agentId: agent_id,
    toNumber: "+15551234567",
    initialGreeting: "Hello {{name}}.",
    variables: { name: "Ann" },
});
assert.equal(placed.fromNumber, bound.number.phoneNumber);
const call_id = placed.id;
const [over, streamed] = await Promise.all([
    polled(call_id, (call) => call.endedAt !== null),
    calls.streamCallTranscript({ call_id }),
]);
assert.equal(over.status, "completed");
assert.equal(over.disconnectionReason, "user_hangup");
assert.deepEqual(
    over.transcripts.map((turn) => turn.response),
    ["Hello Ann."],
);
// The library reads a stream to its end, and then finds that it is no JSON.
assert.match(streamed.error.rawBody, /^event: connected\n.*event: turn\n.*Hello Ann\..*event: ended\n/s);
const transcript = await calls.getCallTranscript({ call_id });
assert.deepEqual(transcript.transcripts, over.transcripts);

// --- A call that is hung up
const second = await calls.createOutboundCall({
    agentId: agent_id,
    toNumber: "+15551234567",
    fromNumberId: numberId,
    systemPrompt: "Ask how it was.",
    modelTier: "turbo",
});
await polled(second.id, (call) => call.status === "in-progress");
await calls.endCall({ call_id: second.id });
await polled(second.id, (call) => call.status === "completed");
await refused(calls.endCall({ call_id: second.id }), 409, /CALL_ENDED/);

// --- A call from a browser, and pages of calls
const web = await calls.createWebCall({ agentId: agent_id, metadata: { visitor: 1 } });
assert.ok(web.accessToken);
await calls.endCall({ call_id: web.callId });
const all = [web.callId, second.id, call_id];
const ofAgent = await agents.listAgentCalls({ agent_id });
assert.deepEqual(
    ofAgent.data.map((call) => call.id),
    all,
);
assert.equal(ofAgent.hasMore, false);
const page = await calls.listCallsForNumber({ number_id: numberId, limit: 1, offset: 0 });
assert.deepEqual(
    [page.data[0].id, page.hasMore, page.total],
    [second.id, true, 2],
);
assert.deepEqual(
    (await calls.listCalls({ type: "web", search: web.callId })).data.map((call) => call.id),
    [web.callId],
);

// --- What is refused
await refused(calls.getCall({ call_id: "nothing" }), 404, /Call not found/);
await refused(agents.getAgent({ agent_id: "nothing" }), 404, /Agent not found/);
await refused(new AgentPhoneClient({ baseUrl, token: "wrong" }).agents.listAgents(), 401, /UNAUTHORIZED/);
await assert.rejects(
    calls.listCallsForNumber({ number_id: numberId, limit: 101 }),
    AgentPhone.UnprocessableEntityError,
);

// --- The end: what is left is the record
await agents.detachNumberFromAgent({ agent_id, number_id: numberId });
assert.equal((await numbers.getNumber({ number_id: numberId })).agentId, null);
assert.equal((await agents.deleteAgent({ agent_id })).success, true);
await refused(agents.getAgent({ agent_id }), 404, /Agent not found/);
assert.equal((await calls.getCall({ call_id })).agentId, agent_id);
