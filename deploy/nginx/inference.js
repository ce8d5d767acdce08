// The Open Inference Protocol at the edge: its paths, its errors, and the versions of its metadata.
// handler/inference_protocol.py reads the requests and writes the other answers.

import common from 'common.js';

const PATH = /^\/v2\/models\/bloodcells(?:\/versions\/([^\/]+))?(\/infer|\/ready|)$/;
const INFER = 'infer', METADATA = 'metadata';
const LENGTH = 'Inference-Header-Content-Length', BINARY = 'application/octet-stream';

// Return what a path of the protocol names, or null for another path. A version that returns its
// metadata is ready.
function wanted(uri) {
    const found = PATH.exec(uri);
    return found && {
        endpoint: 'predictions',
        version: found[1],
        protocol: found[2] === '/infer' ? INFER : METADATA,
        readiness: found[2] === '/ready',
    };
}

// Return the error of a request that the handler could not read, or null.
function refuse(r) {
    const encoding = r.headersIn['Content-Encoding'] || 'identity';
    return encoding.toLowerCase() === 'identity'
        ? null
        : common.problem(415, 'UnsupportedEncoding', 'Compressed requests are not supported.');
}

// Return the answer as the protocol has it.
function translate(request, answer) {
    if (answer.status === 200 && request.protocol === INFER) {
        return answer;
    }
    return Object.assign({}, answer, { body: body(request, answer), jsonLength: null });
}

function body(request, answer) {
    const model = common.parse(String(answer.body)) || {};
    if (answer.status !== 200) {
        return failure(model.message || 'The service failed.');
    }
    if (request.readiness) {
        return JSON.stringify({ name: model.name, ready: true });
    }
    const routing = common.parse(common.read(`${settings.run_dir}/routing.json`)) || {};
    return JSON.stringify(Object.assign(model, { versions: routing.versions || model.versions }));
}

function readiness(ready) {
    return ready ? '{"ready": true}' : failure('The service is not ready.');
}

function failure(message) {
    return JSON.stringify({ error: message });
}

export default { BINARY, LENGTH, METADATA, readiness, refuse, translate, wanted };
