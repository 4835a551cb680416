import java.io.*;
import java.net.*;
import java.net.http.*;
import java.nio.ByteBuffer;
import java.nio.channels.*;
import java.nio.file.*;
import java.security.MessageDigest;
import java.util.*;
import java.util.stream.*;

/**
 * Prints what a program sees of its machine; run natively in a pod and under stead it must print the same. Its
 * sockets are IPv6 ones for every address, or with -Djava.net.preferIPv4Stack=true IPv4 ones.
 */
public class Probe {
    static void out(Object... a) {
        System.out.println(Arrays.stream(a).map(String::valueOf).collect(Collectors.joining(" ")));
    }

    static String tcp(InetAddress a, int port, String say) {
        try (Socket s = new Socket(a, port)) {
            s.getOutputStream().write(say.getBytes());
            byte[] b = new byte[100];
            int n = s.getInputStream().read(b);
            return new String(b, 0, n).trim() + " " + s.getRemoteSocketAddress() + " " + s.getLocalAddress().getHostAddress();
        } catch (IOException e) {
            return e.getMessage();
        }
    }

    /** Whether the local end is what the other side saw. */
    static String ends(InetAddress a) {
        try (Socket s = new Socket(a, 80)) {
            s.getOutputStream().write("GET / HTTP/1.0\r\n\r\n".getBytes());
            String said = new String(s.getInputStream().readAllBytes()).trim();
            said = said.substring(said.lastIndexOf('\n') + 1);
            int colon = said.lastIndexOf(':');
            boolean same = InetAddress.getByName(said.substring(0, colon)).equals(s.getLocalAddress()) && said.substring(colon + 1).equals("" + s.getLocalPort());
            return same + " " + s.getLocalAddress().getHostAddress();
        } catch (IOException e) {
            return e.getMessage();
        }
    }

    /** How connecting fails. */
    static void errnos(List<String> addresses) throws Exception {
        String[] said = new String[addresses.size()];
        List<Thread> all = new ArrayList<>();
        for (int i = 0; i < said.length; i++) {
            int n = i;
            all.add(new Thread(() -> {
                try {
                    said[n] = tcp(InetAddress.getByName(addresses.get(n)), 1, "");
                } catch (IOException e) {
                    said[n] = e.getMessage();
                }
            }));
        }
        for (Thread t : all) t.start();
        for (Thread t : all) t.join();
        for (int i = 0; i < said.length; i++) out("tcp", addresses.get(i), said[i]);
    }

    static void look() throws Exception {
        for (String k : new String[] {"POD_NAME", "DATABASE_URL", "GREETING"}) out("env", k, System.getenv(k));
        out("hostname", new String(new ProcessBuilder("uname", "-n").start().getInputStream().readAllBytes()).trim());
        for (String f : new String[] {"/etc/orders/config.yaml", "/var/run/secrets/orders/token", "/etc/resolv.conf", "/etc/hosts"})
            out("file", f, Files.readString(Path.of(f)).replace("\n", "|"));
        out("link", Files.readSymbolicLink(Path.of("/var/data/link")), Path.of("/var/data/link").toRealPath());
        MessageDigest d = MessageDigest.getInstance("SHA-256");
        try (FileChannel c = FileChannel.open(Path.of("/var/data/big.bin"))) {
            d.update(c.map(FileChannel.MapMode.READ_ONLY, 0, c.size()));
        }
        out("big", Files.size(Path.of("/var/data/big.bin")), Files.getLastModifiedTime(Path.of("/var/data/big.bin")).toMillis() / 1000, HexFormat.of().formatHex(d.digest()));
        try (Stream<Path> s = Files.list(Path.of("/var/data/many"))) {
            List<String> l = s.map(p -> p.getFileName().toString()).sorted().toList();
            out("list", l.size(), l.get(0), l.get(l.size() - 1));
        }
        for (String n : new String[] {"db", "db.shop.svc.cluster.local"})
            out("dns", n, Arrays.stream(InetAddress.getAllByName(n)).map(InetAddress::getHostAddress).sorted().toList());
        for (String n : new String[] {"dozens", "hundreds"}) { // answers that do not fit a datagram
            try {
                out("dns", n, InetAddress.getAllByName(n).length);
            } catch (UnknownHostException e) {
                out("dns", n, "none");
            }
        }
        try {
            InetAddress.getByName("no-such-name");
        } catch (UnknownHostException e) {
            out("dns none");
        }
        InetAddress[] all = InetAddress.getAllByName("db");
        Arrays.sort(all, Comparator.comparing(InetAddress::getHostAddress));
        for (InetAddress a : all) {
            out("tcp", a.getHostAddress(), tcp(a, 5432, "ping\n"));
            out("ends", a.getHostAddress(), ends(a));
            out("refused", a.getHostAddress(), tcp(a, 1, ""));
            try (SocketChannel c = SocketChannel.open()) {
                c.configureBlocking(false);
                Selector sel = Selector.open();
                c.register(sel, SelectionKey.OP_CONNECT);
                c.connect(new InetSocketAddress(a, 5432));
                sel.select(10000);
                out("channel", c.finishConnect(), c.getRemoteAddress());
            }
            try (DatagramSocket u = new DatagramSocket()) {
                u.setSoTimeout(10000);
                u.send(new DatagramPacket("y".getBytes(), 1, a, 5433));
                DatagramPacket p = new DatagramPacket(new byte[100], 100);
                u.receive(p);
                out("udp from", new String(p.getData(), 0, p.getLength()), p.getSocketAddress());
            }
            try (DatagramSocket u = new DatagramSocket()) {
                u.setSoTimeout(10000);
                u.connect(a, 5433);
                u.send(new DatagramPacket("x".getBytes(), 1));
                DatagramPacket p = new DatagramPacket(new byte[100], 100);
                u.receive(p);
                out("udp", new String(p.getData(), 0, p.getLength()), u.getRemoteSocketAddress());
            }
        }
        HttpClient c = HttpClient.newHttpClient();
        String body = c.send(HttpRequest.newBuilder(URI.create("http://db/")).build(), HttpResponse.BodyHandlers.ofString()).body().trim();
        out("http", body.substring(0, body.lastIndexOf(':')));
        for (String l : new String[] {"127.0.0.1", "::1"}) out("loopback", tcp(InetAddress.getByName(l), 9000, "self"));
    }

    static void serve(int port, int count) throws Exception {
        try (ServerSocket l = new ServerSocket(port)) {
            out("listening", l.getLocalPort());
            for (int i = 0; i < count; i++) {
                try (Socket s = l.accept()) {
                    BufferedReader r = new BufferedReader(new InputStreamReader(s.getInputStream()));
                    String[] q = r.readLine().split(" ");
                    while (!r.readLine().isEmpty()) {}
                    String ends = s.getInetAddress().getHostAddress() + " " + s.getPort() + " at " + s.getLocalAddress().getHostAddress() + " " + s.getLocalPort();
                    String text = "java program: " + q[0] + " " + q[1] + " from " + ends + "\n";
                    s.getOutputStream().write(("HTTP/1.1 200 OK\r\nContent-Length: " + text.length() + "\r\nConnection: close\r\n\r\n" + text).getBytes());
                    out("served", q[0], q[1], ends);
                }
            }
        }
    }

    public static void main(String[] a) throws Exception {
        if (a[0].equals("look")) look();
        else if (a[0].equals("errnos")) errnos(List.of(a).subList(1, a.length));
        else serve(Integer.parseInt(a[1]), Integer.parseInt(a[2]));
    }
}
