// The part of the edge that nginx's directives cannot express (njs): it checks API keys, chooses the
// version, retries, and reports to the watch over a canary.
//
// `settings` is RUN_DIR/edge/settings.json. Files are read for every request, so new keys, tokens and
// routings take effect at once. tests/routing_rules.py has the rules that this file and
// serving/client.py share.

import crypto from 'crypto';
import fs from 'fs';
import common from 'common.js';
import inference from 'inference.js';
import torchserve from 'torchserve.js';

// In milliseconds. nginx allows 50 subrequests per request, which limits the retries.
const PATIENCE = 15000;
const RETRY_INTERVAL = 20;
const LONG_RETRY_INTERVAL = 500;
// In seconds, as in serving/deployment/routing.py.
const LONGEST_PAUSE = 15;

const PERMISSIONS = { predictions: 'predict', explanations: 'explain' };
const CLIENT_NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/;
const BEARER = /^Bearer +([^ ]+)$/i;

// Return "STATUS CLIENT" for the variable $edge_access: 200, 401, 403, or 503 if the keys cannot be
// read; the client's name is empty if the key is unknown.
function access(r) {
    const key = apiKey(r);
    if (!key) {
        return '401 ';
    }
    const keys = readKeys(r);
    if (!keys) {
        return '503 ';
    }
    const entry = keys[crypto.createHash('sha256').update(key).digest('hex')];
    if (entry === undefined) {
        return '401 ';
    }
    if (!isValid(entry)) {
        r.variables.edge_fault = 'The entry of this key is damaged.';
        return '503 ';
    }
    const allowed = !entry.revoked && entry.allow.includes(PERMISSIONS[wanted(r).endpoint]);
    return `${allowed ? 200 : 403} ${entry.client}`;
}

// Answer a prediction or an explanation, or what the Open Inference Protocol makes of one.
async function ask(r) {
    const request = wanted(r);
    let answer = request.protocol && inference.refuse(r);
    try {
        answer = answer || await askTorchServe(r, request);
    } catch (error) {
        r.variables.edge_fault = String(error.message);
        answer = common.problem(500, 'EdgeError', 'The edge failed.');
    }
    if (request.protocol) {
        answer = inference.translate(request, answer);
    }
    r.headersOut['Content-Type'] = answer.jsonLength ? inference.BINARY : 'application/json';
    if (answer.jsonLength) {
        r.headersOut[inference.LENGTH] = answer.jsonLength;
    }
    if (answer.version) {
        r.headersOut['X-Model-Version'] = answer.version;
    }
    if (answer.busy) {
        r.headersOut['Retry-After'] = '1';
    }
    r.return(answer.status, answer.body);
}

// Answer whether the service is ready, for the Open Inference Protocol.
async function ready(r) {
    const reply = await r.subrequest('/readyz');
    r.headersOut['Content-Type'] = 'application/json';
    r.return(reply.status === 200 ? 200 : 503, inference.readiness(reply.status === 200));
}

// Send a request to the page again once the page answers, because it restarts. An upload that ends
// the page is sent twice at most.
async function sendAgain(r) {
    const deadline = Date.now() + PATIENCE;
    let up = false;
    while (!r.variables.edge_sent_again && !up && Date.now() < deadline) {
        await common.sleep(LONG_RETRY_INTERVAL);
        up = await isUp();
    }
    if (!up) {
        const answer = common.problem(502, 'ServiceUnavailable', 'The page cannot be reached.');
        r.headersOut['Content-Type'] = 'application/json';
        r.return(answer.status, answer.body);
        return;
    }
    r.variables.edge_sent_again = '1';
    r.internalRedirect(r.variables.args ? `${r.uri}?${r.variables.args}` : r.uri);
}

async function isUp() {
    try {
        await ngx.fetch(settings.page, { method: 'HEAD' });
        return true;
    } catch (error) {
        return false;
    }
}

async function askTorchServe(r, request) {
    const named = request.version;
    r.variables.edge_protocol = request.protocol || '';
    const deadline = Date.now() + PATIENCE;
    const attempts = [];
    let client = r.variables.edge_client;
    let interruptions = 0;
    let answer;
    for (;;) {
        const route = await findRoute(r, named, client, deadline);
        if (!route) {
            answer = common.problem(503, 'ServiceUnavailable', 'The service is not ready.');
            break;
        }
        if (!route.serves) {
            answer = torchserve.notServed();
            break;
        }
        const started = Date.now();
        try {
            answer = await torchserve.send(r, `/${request.endpoint}/bloodcells/${route.version}`);
        } finally {
            common.remove(route.inFlight);
        }
        if (answer.unreachable || answer.putOff) {
            if (Date.now() >= deadline) {
                break;
            }
            await common.sleep(LONG_RETRY_INTERVAL);
            continue;
        }
        attempts.push({ route: route, answer: answer, milliseconds: Date.now() - started });
        const isCanary = !named && route.version === route.routing.canary;
        const interrupted = answer.interrupted || (!named && answer.retired);
        // An image that kills its worker must not kill them all.
        interruptions += interrupted ? 1 : 0;
        if (interruptions > 1 || !(interrupted || (isCanary && (answer.failed || answer.busy)))) {
            break;
        }
        // No client: the default version.
        client = null;
        await common.sleep(RETRY_INTERVAL);
    }
    if (request.endpoint === 'predictions' && request.protocol !== inference.METADATA) {
        report(attempts);
    }
    return answer;
}

// Wait until the service is ready and the version is not paused; return null if that takes too long.
// The request then counts as in flight.
async function findRoute(r, named, client, deadline) {
    for (;;) {
        const text = common.read(`${settings.run_dir}/routing.json`);
        const routing = common.parse(text);
        if (routing) {
            const version = named || choose(routing, client);
            if (!routing.versions.includes(version)) {
                return { serves: false };
            }
            if (!isPaused(routing, version)) {
                const inFlight =
                    `${settings.in_flight}/${version}~${process.pid}~${r.variables.request_id}`;
                common.create(inFlight);
                // A pause that began meanwhile may have missed this request.
                if (common.read(`${settings.run_dir}/routing.json`) === text) {
                    return { serves: true, routing: routing, version: version, inFlight: inFlight };
                }
                common.remove(inFlight);
                continue;
            }
        }
        if (Date.now() >= deadline) {
            return null;
        }
        await common.sleep(RETRY_INTERVAL);
    }
}

// The next three functions do the same as serving/deployment/routing.py.
function isPaused(routing, version) {
    const left = (routing.paused[version] || 0) - Date.now() / 1000;
    // A longer pause means that the clock was set back.
    return 0 < left && left <= LONGEST_PAUSE;
}

function choose(routing, client) {
    const canary = routing.canary;
    return canary && client && place(canary, client) < routing.percent ? canary : routing.default;
}

function place(canary, client) {
    const hash = crypto.createHash('sha256').update(`${canary} ${client}`).digest('hex');
    const high = parseInt(hash.slice(0, 8), 16), low = parseInt(hash.slice(8, 16), 16);
    return (high * 4294967296 + low) / 18446744073709551616 * 100;
}

// While a canary runs, report the attempts to its watch (serving/deployment/canary.py). A full queue
// is the canary's fault only if the default version then answers.
function report(attempts) {
    const last = attempts.length && attempts[attempts.length - 1].answer;
    const answered = last && last.status < 500 && !last.busy;
    attempts.forEach((attempt) => {
        const routing = attempt.route.routing, version = attempt.route.version;
        const answer = attempt.answer;
        const watched = routing.canary && (version === routing.canary || version === routing.default);
        if (!watched || answer.unrelated || answer.retired || (answer.busy && !answered)) {
            return;
        }
        const failed = answer.failed || answer.busy ? 1 : 0;
        const now = (Date.now() / 1000).toFixed(3);
        try {
            const line = `${now} ${version} ${failed} ${attempt.milliseconds}.00\n`;
            fs.appendFileSync(`${settings.run_dir}/outcomes`, line, { mode: 0o600 });
        } catch (error) {
            // A full disk costs no answer.
        }
    });
}

// Return the endpoint and perhaps the version that a path names.
function wanted(r) {
    const parts = r.uri.split('/');
    return inference.wanted(r.uri) || { endpoint: parts[1], version: parts[3] };
}

function apiKey(r) {
    const bearer = BEARER.exec(r.headersIn['Authorization'] || '');
    return r.headersIn['X-API-Key'] || (bearer ? bearer[1] : '');
}

// Return whether an entry has the types of serving/edge/keys.py. Without a name, its client would
// have no limits.
function isValid(entry) {
    return Boolean(entry) && typeof entry.client === 'string' && CLIENT_NAME.test(entry.client)
        && Array.isArray(entry.allow)
        && entry.allow.every((each) => Object.values(PERMISSIONS).includes(each))
        && (entry.revoked === undefined || entry.revoked === null
            || (typeof entry.revoked === 'string' && entry.revoked !== ''));
}

// Return the keys by their hashes, or null if the file is damaged. There is no file before the first
// key is made.
function readKeys(r) {
    try {
        const keys = JSON.parse(fs.readFileSync(settings.keys, 'utf8'));
        if (keys === null || typeof keys !== 'object' || Array.isArray(keys)) {
            throw new Error('not an object');
        }
        return keys;
    } catch (error) {
        r.variables.edge_fault = `The keys cannot be read: ${error.message}`;
        return error.code === 'ENOENT' ? {} : null;
    }
}

export default { access, ask, ready, sendAgain };
