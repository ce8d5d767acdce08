// Files, JSON, errors and waiting: what edge.js and torchserve.js share.

import fs from 'fs';

// Return an answer with one of the project's error documents.
function problem(status, type, message, marks) {
    const body = JSON.stringify({ code: status, type: type, message: message });
    return Object.assign({ status: status, body: body }, marks);
}

function read(path) {
    try {
        return fs.readFileSync(path, 'utf8');
    } catch (error) {
        return null;
    }
}

function create(path) {
    try {
        fs.writeFileSync(path, '', { mode: 0o600 });
    } catch (error) {
        // A full disk costs no answer.
    }
}

function remove(path) {
    try {
        fs.unlinkSync(path);
    } catch (error) {
        // It could not be created.
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

export default { create, parse, problem, read, remove, sleep };
