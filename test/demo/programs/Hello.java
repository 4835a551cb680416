import com.sun.net.httpserver.HttpServer;
import java.io.*;
import java.net.*;
import java.nio.file.*;
import java.util.concurrent.*;

class Hello {
    static void look() throws Exception {
        try (Socket c = new Socket("db", 5432)) {
            c.getOutputStream().write("hello\n".getBytes());
            String answer = new BufferedReader(new InputStreamReader(c.getInputStream())).readLine();
            System.out.println("env    GREETING: " + System.getenv("GREETING"));
            System.out.println("host   " + InetAddress.getLocalHost().getHostName());
            System.out.println("file   /etc/orders/config.yaml: " + Files.size(Path.of("/etc/orders/config.yaml")) + " bytes");
            System.out.println("name   db: " + InetAddress.getByName("db").getHostAddress());
            System.out.println("tcp    " + c.getLocalAddress().getHostAddress() + ":" + c.getLocalPort() + " -> "
                + c.getInetAddress().getHostAddress() + ":" + c.getPort() + ": " + answer);
        }
    }

    public static void main(String[] args) throws Exception {
        if (args.length == 0) look();
        CountDownLatch done = new CountDownLatch(1);
        HttpServer server = HttpServer.create(new InetSocketAddress(8080), 0);
        server.createContext("/", e -> {
            String what = e.getRequestMethod() + " " + e.getRequestURI();
            System.out.println("got " + what + " from " + e.getRemoteAddress().getAddress().getHostAddress());
            byte[] answer = ("the program on the laptop: " + what + "\n").getBytes();
            e.sendResponseHeaders(200, answer.length);
            e.getResponseBody().write(answer);
            e.close();
            done.countDown();
        });
        server.start();
        System.out.println("listening on 8080");
        done.await();
        server.stop(0);
    }
}
