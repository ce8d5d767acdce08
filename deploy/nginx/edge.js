// What the edge decides by program: who may ask, which version answers, with which token, and what is
// asked once more. `python -m serving edge` has nginx load this file as it is; `settings` comes from
// RUN_DIR/edge/settings.json.
//
// Files are read for each request, so a new key, token or routing counts at once.

import crypto from 'crypto';
import fs from 'fs';

// As in serving/client.py, in milliseconds: how long a request waits for a service that starts anew,
// for the next token, between two looks, and before a TorchServe that is not there is tried again
// (which nginx does 50 times at most for a request).
const PATIENCE = 15000;
const RENEWAL_PATIENCE = 2000;
const PAUSE = 20;
const UNREACHABLE_PAUSE = 500;
// As in serving/routing.py, in seconds.
const LONGEST_PAUSE = 15;

// Twice the images that a request may hold.
const MOST_PARTS = 256;

const KINDS = { predictions: 'predict', explanations: 'explain' };
const BEARER = /^Bearer +([^ ]+)$/i;

// Return "STATUS CLIENT": 200, 401, 403, or 503 where the keys can't be read; and the name of who
// asks where a key tells it.
function access(r) {
    const key = apiKey(r);
    if (!key) {
        return '401 ';
    }
    const known = readKeys(r);
    if (!known) {
        return '503 ';
    }
    const entry = known[crypto.createHash('sha256').update(key).digest('hex')];
    if (!entry) {
        return '401 ';
    }
    const allowed = !entry.revoked && entry.allow.includes(KINDS[r.uri.split('/')[1]]);
    return `${allowed ? 200 : 403} ${entry.client}`;
}

// Answer a prediction or an explanation.
async function ask(r) {
    try {
        const answer = hasTooManyParts(r)
            ? refuse(413, 'TooManyImages', `A form may have ${MOST_PARTS} parts.`)
            : settings.nodes ? await askNodes(r) : await askTorchServe(r);
        if (answer.version) {
            r.headersOut['X-Model-Version'] = answer.version;
        }
        if (answer.retryAfter) {
            r.headersOut['Retry-After'] = answer.retryAfter;
        }
        r.headersOut['Content-Type'] = 'application/json';
        r.return(answer.status, answer.body);
    } catch (error) {
        r.variables.edge_fault = String(error.message);
        const refusal = refuse(500, 'EdgeError', 'The edge failed.');
        r.headersOut['Content-Type'] = 'application/json';
        r.return(refusal.status, refusal.body);
    }
}

// Other edges choose the version, and know TorchServe's token; they ask for the client's key.
async function askNodes(r) {
    r.variables.edge_key = apiKey(r);
    const reply = await send(r, r.uri);
    return plainly(reply);
}

async function askTorchServe(r) {
    const parts = r.uri.split('/');
    const kind = parts[1], named = parts[3];
    const deadline = Date.now() + PATIENCE;
    let client = r.variables.edge_client;
    let interruptions = 0;
    for (;;) {
        const found = await findRoute(named, client, deadline);
        if (found.refusal) {
            return found.refusal;
        }
        const routing = found.routing, version = found.version;
        const started = Date.now();
        const reply = await sendAuthorized(r, `/${kind}/bloodcells/${version}`);
        const outcome = understand(reply);
        if (outcome.unreachable) {
            if (Date.now() >= deadline) {
                return refuse(503, 'ServiceUnavailable', 'The service is not ready.');
            }
            await sleep(UNREACHABLE_PAUSE);
            continue;
        }
        if (kind === 'predictions') {
            note(routing, version, outcome.status >= 500 || outcome.interrupted, started);
        }
        const onTrial = !named && version === routing.canary && outcome.status >= 500;
        // It may have been retired since the routing was read.
        const retired = !named && outcome.status === 404;
        const again = outcome.interrupted || retired;
        // An image that kills its worker must not kill them all.
        interruptions += again ? 1 : 0;
        if (!(onTrial || again) || interruptions > 1) {
            return outcome;
        }
        client = null;
        await sleep(PAUSE);
    }
}

// Wait until the service is ready and the version that is to answer is not held.
async function findRoute(named, client, deadline) {
    for (;;) {
        const routing = readJson(`${settings.run_dir}/routing.json`);
        if (routing) {
            const version = named || choose(routing, client);
            if (!routing.versions.includes(version)) {
                return { refusal: refuse(404, 'NotServed', 'This version does not serve.') };
            }
            // Longer it is only where the clock was set back meanwhile.
            const left = (routing.paused[version] || 0) - Date.now() / 1000;
            if (left <= 0 || left > LONGEST_PAUSE) {
                return { routing: routing, version: version };
            }
        }
        if (Date.now() >= deadline) {
            return { refusal: refuse(503, 'ServiceUnavailable', 'The service is not ready.') };
        }
        await sleep(PAUSE);
    }
}

// Choose as serving/routing.py does.
function choose(routing, client) {
    const canary = routing.canary;
    return canary && client && place(canary, client) < routing.percent ? canary : routing.default;
}

function place(canary, client) {
    const hash = crypto.createHash('sha256').update(`${canary} ${client}`).digest('hex');
    const high = parseInt(hash.slice(0, 8), 16), low = parseInt(hash.slice(8, 16), 16);
    return (high * 4294967296 + low) / 18446744073709551616 * 100;
}

// Send with TorchServe's token; once more where it was renewed meanwhile.
async function sendAuthorized(r, target) {
    const token = readToken();
    r.variables.edge_token = token;
    let reply = await send(r, target);
    if (reply.status === 400 && reply.responseText.includes('InvalidKeyException')) {
        const deadline = Date.now() + RENEWAL_PATIENCE;
        while (readToken() === token && Date.now() < deadline) {
            await sleep(PAUSE);
        }
        r.variables.edge_token = readToken();
        reply = await send(r, target);
    }
    return reply;
}

async function send(r, target) {
    r.variables.edge_target = target;
    const reply = await r.subrequest(`/upstream/${r.uri.split('/')[1]}`, { method: 'POST' });
    const seen = reply.variables;
    r.variables.edge_upstream = seen.upstream_addr || '';
    r.variables.edge_upstream_seconds = seen.upstream_response_time || '';
    return reply;
}

// Return what a reply of TorchServe means, its own errors in words for clients.
function understand(reply) {
    const version = reply.headersOut['X-Model-Version'];
    if (version || reply.status === 200) {
        return { status: reply.status, body: reply.responseBuffer, version: version };
    }
    const answered = reply.variables.upstream_header_time;
    if (reply.status === 502 && (!answered || answered.slice(-1) === '-')) {
        const connected = reply.variables.upstream_connect_time || '';
        const interrupted = connected.slice(-1) !== '' && connected.slice(-1) !== '-';
        const refusal = refuse(503, 'ServiceUnavailable', 'The service broke off.');
        refusal.interrupted = interrupted;
        refusal.unreachable = !interrupted;
        return refusal;
    }
    const said = parse(reply.responseText) || {};
    switch (reply.status) {
    case 404:
        return refuse(404, 'NotServed', 'This version does not serve.');
    case 413:
        return refuse(413, 'ImageTooLarge', 'The request is too large.');
    case 500:
    case 507: {
        // TorchServe calls a damaged form a fault of its own, by what its parser stumbled over.
        if (/^(ErrorDataDecoder|\w*IndexOutOfBounds|IllegalArgument)Exception$/.test(said.type)) {
            return refuse(400, 'BadRequest', 'The form can\'t be read.');
        }
        const refusal = refuse(503, 'ServiceUnavailable', 'The service broke off.');
        refusal.interrupted = said.type === 'InternalServerException';
        return refusal;
    }
    case 503: {
        if (said.type !== 'ServiceUnavailableException') {
            return refuse(503, 'ServiceUnavailable', 'The service failed.');
        }
        // TorchServe says the same of a version without workers, which then is not routed to.
        const refusal = refuse(429, 'ServiceBusy', 'Too many requests wait: try again soon.');
        refusal.retryAfter = '1';
        return refusal;
    }
    case 504:
        return refuse(504, 'ServiceTimeout', 'The service took too long.');
    default:
        return refuse(502, 'ServiceError', 'The service gave no usable answer.');
    }
}

// Return a node's reply as it is, if it is one of an edge.
function plainly(reply) {
    if (reply.status === 502 || reply.status === 504) {
        return refuse(503, 'ServiceUnavailable', 'No node answers.');
    }
    return {
        status: reply.status,
        body: reply.responseBuffer,
        version: reply.headersOut['X-Model-Version'],
        retryAfter: reply.headersOut['Retry-After'],
    };
}

// While a canary runs, tell its watch what came of a request (serving/canary.py).
function note(routing, version, failed, started) {
    if (!routing.canary || (version !== routing.canary && version !== routing.default)) {
        return;
    }
    const now = Date.now();
    const line = `${(now / 1000).toFixed(3)} ${version} ${failed ? 1 : 0} ${now - started}.00\n`;
    try {
        fs.appendFileSync(`${settings.run_dir}/outcomes`, line, { mode: 0o600 });
    } catch (error) {
        // A full disk is no reason to refuse an answer.
    }
}

// TorchServe takes seconds to take a form of 100,000 parts apart, in one of its few threads.
function hasTooManyParts(r) {
    if (!/^multipart\//i.test(r.headersIn['Content-Type'] || '') || !r.requestBuffer) {
        return false;
    }
    const body = r.requestBuffer;
    let parts = 0;
    for (let at = body.indexOf('\n--'); at >= 0; at = body.indexOf('\n--', at + 3)) {
        parts += 1;
        if (parts > MOST_PARTS) {
            return true;
        }
    }
    return false;
}

function refuse(status, type, message) {
    return { status: status, body: JSON.stringify({ code: status, type: type, message: message }) };
}

function apiKey(r) {
    const bearer = BEARER.exec(r.headersIn['Authorization'] || '');
    return r.headersIn['X-API-Key'] || (bearer ? bearer[1] : '');
}

// Return the keys by their hashes; none are known before the first is made; null on a fault.
function readKeys(r) {
    try {
        return JSON.parse(fs.readFileSync(settings.keys, 'utf8'));
    } catch (error) {
        r.variables.edge_fault = `The keys can't be read: ${error.message}`;
        return error.code === 'ENOENT' ? {} : null;
    }
}

function readToken() {
    try {
        const line = fs.readFileSync(`${settings.run_dir}/inference.header`, 'utf8');
        return line.slice(line.indexOf(':') + 1).trim();
    } catch (error) {
        return '';
    }
}

function readJson(path) {
    try {
        return parse(fs.readFileSync(path, 'utf8'));
    } catch (error) {
        return null;
    }
}

function parse(text) {
    try {
        return JSON.parse(text);
    } catch (error) {
        return null;
    }
}

function sleep(milliseconds) {
    return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

export default { access, ask };
