import java.net.URI;
import java.net.http.*;

class Fetch {
    public static void main(String[] args) throws Exception {
        HttpResponse<String> r = HttpClient.newHttpClient().send(
            HttpRequest.newBuilder(URI.create(args[0])).build(), HttpResponse.BodyHandlers.ofString());
        if (r.statusCode() != 200) throw new Exception("status " + r.statusCode());
    }
}
