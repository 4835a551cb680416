const { lookup } = require("dns"), fs = require("fs"), http = require("http"), net = require("net"), os = require("os");

function look(then) {
  lookup("db", 4, (err, address) => {
    if (err) throw err;
    const c = net.connect(5432, "db", () => c.write("hello\n"));
    c.once("data", (answer) => {
      console.log("env    GREETING:", process.env.GREETING);
      console.log("host  ", os.hostname());
      console.log("file   /etc/orders/config.yaml:", fs.readFileSync("/etc/orders/config.yaml").length, "bytes");
      console.log("name   db:", address);
      console.log(`tcp    ${c.localAddress}:${c.localPort} -> ${c.remoteAddress}:${c.remotePort}: ${answer.toString().trim()}`);
      c.end();
      then();
    });
  });
}

function serve() {
  const server = http.createServer((req, res) => {
    console.log("got", req.method, req.url, "from", req.socket.remoteAddress.replace("::ffff:", ""));
    res.setHeader("Connection", "close");
    res.end(`the program on the laptop: ${req.method} ${req.url}\n`);
    server.close();
  });
  server.listen(8080, () => console.log("listening on 8080"));
}

process.argv.length > 2 ? serve() : look(serve);
