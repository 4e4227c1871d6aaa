import brave.propagation.B3Propagation;
import brave.propagation.B3SingleFormat;
import brave.propagation.Propagation;
import brave.propagation.TraceContext;
import brave.propagation.TraceContextOrSamplingFlags;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.reflect.TypeToken;
import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.ConnectionFactory;
import io.micrometer.tracing.brave.bridge.W3CPropagation;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.StreamSupport;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * The peer in Java: what Brave makes of the headers that tracefill wrote, and headers that Brave wrote.
 *
 * <pre>
 * Peer produce BROKER TOPIC FORMAT HEADERS   one record, with the trace position of HEADERS, written in FORMAT
 * Peer consume BROKER TOPIC COUNT            the first COUNT records, one line of JSON each
 * Peer get URL FORMAT HEADERS                one request with that position; the answer as a line of JSON
 * </pre>
 *
 * BROKER is a Kafka's host:port, or a RabbitMQ's amqp://..., whose queue TOPIC is.
 * HEADERS is a JSON object, read by all formats; FORMAT is tracecontext, b3 or b3multi.
 */
public final class Peer {
  static final Duration PATIENCE = Duration.ofMinutes(1);
  static final Gson JSON = new GsonBuilder().serializeNulls().disableHtmlEscaping().create();

  static final Propagation<String> B3 = b3(B3Propagation.Format.SINGLE);
  // What Spring's services use (it drops the tracestate); Brave's own reads no traceparent that comes without one.
  static final Propagation<String> TRACE_CONTEXT = new W3CPropagation();
  static final Map<String, Propagation<String>> FORMATS =
      Map.of("tracecontext", TRACE_CONTEXT, "b3", B3, "b3multi", b3(B3Propagation.Format.MULTI));

  /** A trace position as Brave sees it; {@code sampled} is null where nobody has decided, {@code b3} is sent on. */
  record Position(String trace_id, String span_id, Boolean sampled, String b3) {}

  /** A record of Kafka, or a message of RabbitMQ, and what each format reads from its headers, null where that is nothing. */
  record Read(String value, List<List<String>> headers, Position tracecontext, Position b3) {}

  /** What came back for a request. */
  record Answer(int status, String body) {}

  public static void main(String[] args) throws Exception {
    String verb = args.length == 0 ? "" : args[0];
    if (verb.equals("produce") && args.length == 5) {
      produce(args[1], args[2], args[3], args[4]);
    } else if (verb.equals("consume") && args.length == 4) {
      consume(args[1], args[2], Integer.parseInt(args[3]));
    } else if (verb.equals("get") && args.length == 4) {
      get(args[1], args[2], args[3]);
    } else {
      throw new IllegalArgumentException(
          "expected produce, consume or get with its arguments, got " + Arrays.toString(args));
    }
  }

  static void produce(String broker, String topic, String format, String headers) throws Exception {
    if (broker.startsWith("amqp://")) {
      publish(broker, topic, format, headers);
      return;
    }
    var record = new ProducerRecord<String, String>(topic, "from java");
    Propagation.Setter<Headers, String> add = (to, key, value) -> to.add(key, value.getBytes(StandardCharsets.UTF_8));
    inject(format, headers, add, record.headers());
    Map<String, Object> settings = Map.of("bootstrap.servers", broker);
    try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
      producer.send(record).get();
    }
  }

  static void consume(String broker, String topic, int count) throws Exception {
    if (broker.startsWith("amqp://")) {
      look(broker, topic, count);
      return;
    }
    Map<String, Object> settings =
        Map.of("bootstrap.servers", broker, "auto.offset.reset", "earliest", "max.poll.records", 1);
    try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer())) {
      consumer.assign(List.of(new TopicPartition(topic, 0)));
      var deadline = Instant.now().plus(PATIENCE);
      while (count > 0) {
        for (var record : consumer.poll(Duration.ofSeconds(1))) {
          System.out.println(JSON.toJson(read(record)));
          count--;
        }
        if (Instant.now().isAfter(deadline)) {
          throw new IllegalStateException(count + " records have not come");
        }
      }
    }
  }

  static void publish(String url, String queue, String format, String headers) throws Exception {
    Map<String, Object> written = new HashMap<>();
    inject(format, headers, Map::put, written);
    try (var connection = factory(url).newConnection(); var channel = connection.createChannel()) {
      channel.confirmSelect();
      var properties = new BasicProperties.Builder().headers(written).build();
      channel.basicPublish("", queue, properties, "from java".getBytes(StandardCharsets.UTF_8));
      channel.waitForConfirmsOrDie(PATIENCE.toMillis());
    }
  }

  /** Prints the first messages of a queue; none is acknowledged, so they are all there again when the channel is closed. */
  static void look(String url, String queue, int count) throws Exception {
    try (var connection = factory(url).newConnection(); var channel = connection.createChannel()) {
      var deadline = Instant.now().plus(PATIENCE);
      while (count > 0) {
        var message = channel.basicGet(queue, false);
        if (message != null) {
          Map<String, Object> found = message.getProps().getHeaders();
          Map<String, String> headers = new HashMap<>();
          if (found != null) {
            found.forEach((name, value) -> headers.put(name, String.valueOf(value)));
          }
          System.out.println(JSON.toJson(read(new String(message.getBody(), StandardCharsets.UTF_8), headers)));
          count--;
        } else if (Instant.now().isAfter(deadline)) {
          throw new IllegalStateException(count + " messages have not come");
        } else {
          Thread.sleep(10);
        }
      }
    }
  }

  static ConnectionFactory factory(String url) throws Exception {
    var factory = new ConnectionFactory();
    factory.setUri(url);
    return factory;
  }

  static void get(String url, String format, String headers) throws Exception {
    var request = HttpRequest.newBuilder(URI.create(url)).timeout(PATIENCE);
    inject(format, headers, HttpRequest.Builder::setHeader, request);
    var response = HttpClient.newHttpClient().send(request.build(), BodyHandlers.ofString());
    System.out.println(JSON.toJson(new Answer(response.statusCode(), response.body())));
  }

  /** Writes the position that the headers hold into the carrier, in the format. */
  static <C> void inject(String format, String headers, Propagation.Setter<C, String> setter, C carrier) {
    Map<String, String> given = JSON.fromJson(headers, new TypeToken<Map<String, String>>() {}.getType());
    var context = TRACE_CONTEXT.<Map<String, String>>extractor(Map::get).extract(given).context();
    if (context == null) {
      context = B3.<Map<String, String>>extractor(Map::get).extract(given).context();
    }
    if (context == null) {
      throw new IllegalArgumentException("expected headers with a trace position, got " + headers);
    }
    FORMATS.get(format).injector(setter).inject(context, carrier);
  }

  static Read read(ConsumerRecord<String, String> record) {
    var headers =
        StreamSupport.stream(record.headers().spliterator(), false)
            .map(header -> List.of(header.key(), text(header)))
            .toList();
    Propagation.Getter<Headers, String> last = (from, key) -> text(from.lastHeader(key));
    var from = record.headers();
    return new Read(record.value(), headers, position(TRACE_CONTEXT, last, from), position(B3, last, from));
  }

  static Read read(String value, Map<String, String> headers) {
    var pairs = headers.entrySet().stream().map(entry -> List.of(entry.getKey(), entry.getValue())).toList();
    Propagation.Getter<Map<String, String>, String> named = Map::get;
    return new Read(value, pairs, position(TRACE_CONTEXT, named, headers), position(B3, named, headers));
  }

  /** The position that Brave reads; without ids where the headers hold nothing but a decision. */
  static <C> Position position(Propagation<String> format, Propagation.Getter<C, String> getter, C headers) {
    TraceContextOrSamplingFlags found = format.extractor(getter).extract(headers);
    TraceContext context = found.context();
    if (context == null) {
      return found.sampled() == null ? null : new Position("", "", found.sampled(), "");
    }
    String b3 = B3SingleFormat.writeB3SingleFormat(context);
    return new Position(context.traceIdString(), context.spanIdString(), context.sampled(), b3);
  }

  static String text(Header header) {
    return header == null ? null : new String(header.value(), StandardCharsets.UTF_8);
  }

  static Propagation<String> b3(B3Propagation.Format format) {
    return B3Propagation.newFactoryBuilder().injectFormat(format).build().get();
  }
}
