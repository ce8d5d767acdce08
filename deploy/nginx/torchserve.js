// Send a request to TorchServe with its token, and translate the reply.

import common from 'common.js';

// In milliseconds.
const RENEWAL_PATIENCE = 2000;
const RETRY_INTERVAL = 20;

// Send with TorchServe's token, and again whenever the token was renewed meanwhile.
async function send(r, target) {
    const deadline = Date.now() + RENEWAL_PATIENCE;
    let token, reply;
    do {
        const found = readToken();
        if (!found || found === token) {
            await common.sleep(RETRY_INTERVAL);
        } else {
            token = found;
            reply = await subrequest(r, target, token);
        }
    } while ((!reply || isTokenRefused(reply)) && Date.now() < deadline);
    return reply ? interpret(reply) : unreachable();
}

async function subrequest(r, target, token) {
    r.variables.edge_target = target;
    r.variables.edge_token = token;
    const reply = await r.subrequest(`/upstream/${target.split('/')[1]}`, { method: 'POST' });
    r.variables.edge_upstream_seconds = reply.variables.upstream_response_time || '';
    return reply;
}

function isTokenRefused(reply) {
    return reply.status === 400 && reply.responseText.includes('InvalidKeyException');
}

// Translate a reply to status and body for the client, and evidence about the version:
//   failed        the version is at fault
//   busy          its queue is full
//   putOff        its worker has too much to do (and `busy`)
//   interrupted   its worker or TorchServe died with the request
//   unreachable   nothing was sent
//   retired       it no longer serves
//   unrelated     the error is not evidence about the version
function interpret(reply) {
    const seen = reply.variables;
    if (isIncomplete(reply)) {
        return isSet(seen.upstream_connect_time) ? disconnected() : unreachable();
    }
    const version = reply.headersOut['X-Model-Version'];
    if (version || reply.status === 200) {
        if (reply.status === 503 && (common.parse(reply.responseText) || {}).type === 'ServiceBusy') {
            return Object.assign(busy(), { putOff: true, unrelated: true });
        }
        return {
            status: reply.status,
            body: reply.responseBuffer,
            jsonLength: reply.headersOut['Inference-Header-Content-Length'],
            version: version,
            failed: reply.status >= 500,
        };
    }
    const type = (common.parse(reply.responseText) || {}).type;
    switch (reply.status) {
    case 404:
        return notServed();
    case 413:
        return common.problem(413, 'ImageTooLarge', 'The request is too large.');
    case 500:
    case 507:
        return workerDied();
    case 503:
        // TorchServe reports a full queue and a version without workers alike.
        return type === 'ServiceUnavailableException'
            ? busy()
            : common.problem(503, 'ServiceUnavailable', 'The service failed.', { failed: true });
    case 504:
        return common.problem(504, 'ServiceTimeout', 'The service took too long.', { failed: true });
    default: {
        const marks = isTokenRefused(reply) ? { unrelated: true } : { failed: true };
        return common.problem(502, 'ServiceError', 'The service gave no valid answer.', marks);
    }
    }
}

// Return whether the connection failed before the end of the answer.
function isIncomplete(reply) {
    const length = reply.headersOut['Content-Length'];
    const received = reply.responseBuffer ? reply.responseBuffer.length : 0;
    return (reply.status === 502 && !isSet(reply.variables.upstream_header_time))
        || Number(length || 0) > received;
}

// nginx writes "-" for a missing value.
function isSet(variable) {
    return Boolean(variable) && variable.slice(-1) !== '-';
}

function notServed() {
    return common.problem(404, 'NotServed', 'This version does not serve.', { retired: true });
}

function unreachable() {
    return common.problem(503, 'ServiceUnavailable', 'The service is not ready.', { unreachable: true });
}

function workerDied() {
    const marks = { failed: true, interrupted: true };
    return common.problem(503, 'ServiceUnavailable', 'The worker died.', marks);
}

function busy() {
    const message = 'Too many requests are waiting: try again soon.';
    return common.problem(429, 'ServiceBusy', message, { busy: true });
}

function disconnected() {
    const marks = { interrupted: true, unrelated: true };
    return common.problem(503, 'ServiceUnavailable', 'The service broke the connection.', marks);
}

// Return the token, or nothing while TorchServe has not completely written its file. Our own copy,
// inference.header, is outdated if the disk was full at a renewal.
function readToken() {
    const keys = common.parse(common.read(`${settings.run_dir}/key_file.json`));
    return keys && keys.inference && keys.inference.key;
}

export default { notServed, send };
