// Run the edge's scripts on a request for each line of JSON; print the outcome and CPU milliseconds.
// In place of nginx they get files in memory, a clock that jumps, and one reply of TorchServe.

import assert from 'node:assert/strict';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import readline from 'node:readline';

const SOURCE = path.resolve(import.meta.dirname, '../deploy/nginx');
// The limit of nginx.
const MOST_SUBREQUESTS = 50;

let files = {};
let now = 1e12;

Date.now = () => now;
globalThis.setTimeout = (call, milliseconds) => {
  now += milliseconds;
  queueMicrotask(call);
};
globalThis.settings = { run_dir: '', keys: '/keys', in_flight: '/in_flight' };
globalThis.files = {
  readFileSync(name) {
    if (name in files) {
      return files[name];
    }
    throw Object.assign(new Error('no such file'), { code: 'ENOENT' });
  },
  writeFileSync() {}, appendFileSync() {}, unlinkSync() {},
};

async function edge() {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'edge-'));
  fs.writeFileSync(path.join(folder, 'fs.mjs'), 'export default globalThis.files;');
  for (const name of fs.readdirSync(SOURCE).filter((each) => each.endsWith('.js'))) {
    const text = fs.readFileSync(path.join(SOURCE, name), 'utf8')
      .replace("from 'fs'", "from './fs.mjs'").replace(/from '(\w+)\.js'/g, "from './$1.mjs'");
    fs.writeFileSync(path.join(folder, name.replace('.js', '.mjs')), text);
  }
  const module = await import(path.join(folder, 'edge.mjs'));
  fs.rmSync(folder, { recursive: true });
  return module.default;
}

// Return an object, whatever the text is.
function parsed(text) {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
}

async function run(scripts, fields) {
  // The service's own files are small.
  const [keys, routing] = [fields.keys, fields.routing].map((each) => each.slice(0, 8192));
  files = {
    '/keys': keys, '/routing.json': routing, '/inference.header': 'Bearer: token',
    '/key_file.json': '{"inference": {"key": "token"}}',
  };
  const status = Number.parseInt(fields.status, 10);
  const buffer = Buffer.from(fields.reply, 'latin1');
  const reply = {
    status: status >= 200 && status < 600 ? status : 500, headersOut: parsed(fields.headers),
    responseBuffer: buffer, responseText: buffer.toString(),
    variables: { upstream_connect_time: fields.connect, upstream_header_time: fields.connect },
  };
  const answers = [];
  let subrequests = 0;
  const r = {
    uri: `/${fields.uri}`, variables: { request_id: 'id', edge_client: fields.client },
    headersIn: { 'Authorization': fields.authorization, 'X-API-Key': fields.key },
    headersOut: {},
    return: (...answer) => answers.push(answer),
    subrequest: async () => {
      subrequests += 1;
      return reply;
    },
  };
  const access = scripts.access(r);
  assert(/^(200|401|403|503) /.test(access), `access returns ${access}`);
  const key = fields.key || (/^Bearer +([^ ]+)$/i.exec(fields.authorization) || [])[1] || '';
  const hash = crypto.createHash('sha256').update(key).digest('hex');
  assert(/^(401|503)/.test(access) || hash in parsed(keys), 'an unknown key is accepted');

  await scripts.ask(r);
  assert(answers.length === 1, `${answers.length} answers`);
  const [[code, body]] = answers;
  assert(code >= 200 && code < 600, `the status is ${code}`);
  assert(typeof body === 'string' || Buffer.isBuffer(body), `the body is ${typeof body}`);
  const { versions, paused } = parsed(routing);
  const isRouting = Array.isArray(versions) && paused instanceof Object;
  assert(!isRouting || !body.includes('EdgeError'), `EdgeError: ${r.variables.edge_fault}`);
  assert(subrequests <= MOST_SUBREQUESTS, `${subrequests} subrequests`);
  return `${access.slice(0, 3)} ${code} ${subrequests}`;
}

const scripts = await edge();
for await (const line of readline.createInterface({ input: process.stdin })) {
  const before = process.cpuUsage();
  let outcome;
  try {
    outcome = await run(scripts, JSON.parse(line));
  } catch (error) {
    outcome = `wrong: ${error.stack.split('\n').slice(0, 3).join(' ')}`;
  }
  const { user, system } = process.cpuUsage(before);
  process.stdout.write(`${JSON.stringify([outcome, (user + system) / 1000])}\n`);
}
