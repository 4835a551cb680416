// Prints what a program sees of its machine; run natively in a pod and under stead it must print
// the same. `probe.js look` or `probe.js serve PORT COUNT`.
const fs = require('fs'), os = require('os'), net = require('net'), dns = require('dns').promises;
const http = require('http'), dgram = require('dgram'), crypto = require('crypto');
const out = (...a) => console.log(...a.map(x => typeof x === 'string' ? x : JSON.stringify(x)));

const get = url => new Promise((ok, bad) => http.get(url, {agent: false}, r => {
  let b = ''; r.on('data', d => b += d); r.on('end', () => ok(b));
}).on('error', bad));

const tcp = (host, port, say) => new Promise(ok => {
  const s = net.connect(port, host);
  s.on('connect', () => s.write(say));
  s.once('data', d => { ok([d.toString(), s.remoteAddress, s.localAddress]); s.destroy(); });
  s.on('error', e => ok([e.code]));
});

// ends says whether the local end is what the other side saw.
const ends = host => new Promise(ok => {
  const s = net.connect(80, host);
  let b = '', local;
  s.on('connect', () => { local = s.localAddress.includes(':') ? `[${s.localAddress}]:${s.localPort}` : `${s.localAddress}:${s.localPort}`; s.write('GET / HTTP/1.0\r\n\r\n'); });
  s.on('data', d => b += d);
  s.on('end', () => ok(b.endsWith('\n' + local + '\n')));
  s.on('error', e => ok(e.code));
});

const udp = (family, host, port, connected) => new Promise((ok, bad) => {
  const s = dgram.createSocket(family);
  s.on('error', bad);
  s.on('message', (m, from) => { ok([m.toString(), from.address, from.port]); s.close(); });
  if (connected) s.connect(port, host, () => s.send('x')); else s.send('y', port, host);
});

async function look() {
  for (const k of ['POD_NAME', 'DATABASE_URL', 'GREETING']) out('env', k, process.env[k] ?? null);
  out('hostname', os.hostname());
  for (const f of ['/etc/orders/config.yaml', '/var/run/secrets/orders/token', '/etc/resolv.conf', '/etc/hosts']) out('file', f, fs.readFileSync(f, 'utf8'));
  out('link', fs.readlinkSync('/var/data/link'), fs.realpathSync('/var/data/link'));
  const st = fs.statSync('/var/data/big.bin');
  const h = crypto.createHash('sha256');
  for await (const c of fs.createReadStream('/var/data/big.bin')) h.update(c);
  out('big', st.size, st.mode, st.mtimeMs, h.digest('hex'));
  const names = fs.readdirSync('/var/data/many').sort();
  out('list', names.length, names[0], names[names.length - 1]);
  try { fs.statSync('/etc/no/such'); } catch (e) { out('none', e.code); }
  for (const n of ['db', 'db.shop.svc.cluster.local']) out('lookup', n, await dns.lookup(n, {all: true}));
  out('resolve4', await dns.resolve4('db.shop.svc.cluster.local'));
  out('resolve6', await dns.resolve6('db.shop.svc.cluster.local').catch(e => e.code));
  for (const n of ['dozens', 'hundreds']) { // answers that do not fit a datagram
    out('lookup', n, await dns.lookup(n, {all: true}).then(a => a.length, e => e.code));
    out('resolve4', n, await dns.resolve4(n + '.shop.svc.cluster.local').then(a => a.length, e => e.code));
  }
  await dns.lookup('no-such-name').catch(e => out('lookup none', e.code));
  await dns.resolve4('no-such-name.shop.svc.cluster.local').catch(e => out('resolve none', e.code));
  for (const {address, family} of (await dns.lookup('db', {all: true})).sort((a, b) => a.family - b.family)) {
    out('tcp', address, await tcp(address, 5432, 'ping\n'));
    out('ends', address, await ends(address));
    out('refused', address, await tcp(address, 1, ''));
    out('udp', address, await udp('udp' + family, address, 5433, true), await udp('udp' + family, address, 5433, false));
  }
  out('tcp name', (await tcp('db', 5432, 'ping\n'))[0]);
  out('http', (await get('http://db/')).trim().replace(/:\d+$/, ''));
  for (const a of ['127.0.0.1', '::1']) out('loopback', a, await tcp(a, 9000, 'self'));
}

function serve(port, count) {
  const s = http.createServer((q, r) => {
    const c = q.socket, ends = `${c.remoteAddress} ${c.remotePort} at ${c.localAddress} ${c.localPort}`;
    const body = `node program: ${q.method} ${q.url} from ${ends}\n`;
    r.writeHead(200, {'Content-Length': body.length, Connection: 'close'});
    r.end(body, () => {
      out('served', q.method, q.url, ends);
      if (--count === 0) { s.close(); }
    });
  });
  s.listen(port, () => out('listening', s.address().port));
}

// errnos tells how connecting fails.
async function errnos(addresses) {
  const said = await Promise.all(addresses.map(a => tcp(a, 1, '')));
  addresses.forEach((a, i) => out('tcp', a, said[i]));
}

if (process.argv[2] === 'errnos') errnos(process.argv.slice(3));
else if (process.argv[2] === 'look') look().catch(e => { console.error(e); process.exit(1); });
else serve(+process.argv[3], +process.argv[4]);
