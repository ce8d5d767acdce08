// Run the edge's scripts on one request for each line of JSON; print its outcome and CPU milliseconds.
//
// The scripts are njs modules. Here they get files in memory, a clock that jumps, and an nginx of one
// reply. Keys, routing and the token are TorchServe's or our own files; all else is from a client.

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

globalThis.settings = { run_dir: '/run', keys: '/run/keys.json', in_flight: '/run/in_flight' };
globalThis.setTimeout = (call, milliseconds) => {
  now += milliseconds;
  queueMicrotask(call);
};
Date.now = () => now;
globalThis.files = {
  readFileSync(name) {
    if (name in files) {
      return files[name];
    }
    throw Object.assign(new Error('no such file'), { code: 'ENOENT' });
  },
  writeFileSync() {},
  appendFileSync() {},
  unlinkSync() {},
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

function parsed(text, otherwise) {
  try {
    return Object(JSON.parse(text));
  } catch {
    return otherwise;
  }
}

function assert(holds, message) {
  if (!holds) {
    throw new Error(message);
  }
}

async function run(scripts, fields) {
  const bytes = (name) => Buffer.from(fields[name], 'latin1');
  files = {
    '/run/keys.json': fields.keys,
    '/run/routing.json': fields.routing,
    '/run/inference.header': 'Authorization: Bearer token',
    '/run/key_file.json': '{"inference": {"key": "token"}}',
  };
  const headersIn = {
    'Authorization': fields.authorization, 'X-API-Key': fields.key, 'Content-Type': fields.type,
  };
  const variables = { request_id: 'id', edge_client: fields.client };
  const given = Number.parseInt(fields.status, 10);
  let subrequests = 0;
  const answers = [];
  const r = {
    uri: `/${fields.uri}`, headersIn, headersOut: {}, variables, requestBuffer: bytes('body'),
    return: (status, body) => answers.push([status, body]),
    subrequest: async () => {
      subrequests += 1;
      now += 100;
      return {
        status: given >= 200 && given < 600 ? given : 500, responseText: bytes('reply').toString(),
        responseBuffer: bytes('reply'), headersOut: parsed(fields.headers, {}),
        variables: { upstream_connect_time: fields.connect, upstream_header_time: fields.connect },
      };
    },
  };
  const access = scripts.access(r);
  assert(/^(200|401|403|503) /.test(access), `access returns ${access}`);
  const key = fields.key || (/^Bearer +([^ ]+)$/i.exec(fields.authorization) || [])[1] || '';
  const hash = crypto.createHash('sha256').update(key).digest('hex');
  assert(/^(401|503)/.test(access) || hash in parsed(fields.keys, {}), 'an unknown key is accepted');
  await scripts.ask(r);
  assert(answers.length === 1, `${answers.length} answers`);
  const [[status, body]] = answers;
  assert(Number.isInteger(status) && status >= 200 && status < 600, `the status is ${status}`);
  assert(typeof body === 'string' || Buffer.isBuffer(body), `the body is ${typeof body}`);
  const { versions, paused } = parsed(fields.routing, {});
  const valid = Array.isArray(versions) && paused instanceof Object;
  assert(!valid || !String(body).includes('EdgeError'), `EdgeError: ${variables.edge_fault}`);
  assert(subrequests <= MOST_SUBREQUESTS, `${subrequests} subrequests`);
  return `${access.slice(0, 3)} ${status} ${subrequests}`;
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
