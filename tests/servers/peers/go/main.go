// The peer in Go: what otel-go makes of the headers that tracefill wrote, and headers that otel-go wrote.
//
//	peer produce BROKER TOPIC FORMAT HEADERS   one record, with the trace position of HEADERS, written in FORMAT
//	peer consume BROKER TOPIC COUNT            the first COUNT records, one line of JSON each
//	peer get URL FORMAT HEADERS                one request with that position; the answer as a line of JSON
//
// BROKER is a Kafka's host:port, or a RabbitMQ's amqp://..., whose queue TOPIC is.
// HEADERS is a JSON object, read by all formats; FORMAT is tracecontext (with baggage), b3 or b3multi.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kotel"
	"go.opentelemetry.io/contrib/propagators/b3"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

const patience = time.Minute

var (
	b3Single     = b3.New(b3.WithInjectEncoding(b3.B3SingleHeader))
	traceContext = propagation.TraceContext{}
	w3c          = propagation.NewCompositeTextMapPropagator(traceContext, propagation.Baggage{})

	formats = map[string]propagation.TextMapPropagator{
		"tracecontext": w3c,
		"b3":           b3Single,
		"b3multi":      b3.New(b3.WithInjectEncoding(b3.B3MultipleHeader)),
	}
)

// Position is a trace position as otel-go sees it; B3 is how it sends it on, the only way to see that it is debug or
// that nobody has decided.
type Position struct {
	TraceID    string `json:"trace_id"`
	SpanID     string `json:"span_id"`
	Sampled    bool   `json:"sampled"`
	TraceState string `json:"trace_state"`
	B3         string `json:"b3"`
}

// Record is a record of Kafka, or a message of RabbitMQ, and what each format reads from its headers, nil where that is nothing.
type Record struct {
	Value        string            `json:"value"`
	Headers      [][2]string       `json:"headers"`
	TraceContext *Position         `json:"tracecontext"`
	B3           *Position         `json:"b3"`
	Baggage      map[string]string `json:"baggage"`
}

// Answer is what came back for a request.
type Answer struct {
	Status int    `json:"status"`
	Body   string `json:"body"`
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 5 && args[0] == "produce" && strings.HasPrefix(args[1], "amqp://"):
		err = publish(ctx, args[1], args[2], args[3], args[4])
	case len(args) == 4 && args[0] == "consume" && strings.HasPrefix(args[1], "amqp://"):
		err = look(ctx, args[1], args[2], args[3])
	case len(args) == 5 && args[0] == "produce":
		err = produce(ctx, args[1], args[2], args[3], args[4])
	case len(args) == 4 && args[0] == "consume":
		err = consume(ctx, args[1], args[2], args[3])
	case len(args) == 4 && args[0] == "get":
		err = get(ctx, args[1], args[2], args[3])
	default:
		err = fmt.Errorf("expected produce, consume or get with its arguments, got %q", args)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func produce(ctx context.Context, broker, topic, format, headers string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.AllowAutoTopicCreation())
	if err != nil {
		return err
	}
	defer client.Close()
	record := &kgo.Record{Topic: topic, Value: []byte("from go")}
	if err := inject(ctx, format, headers, kotel.NewRecordCarrier(record)); err != nil {
		return err
	}
	return client.ProduceSync(ctx, record).FirstErr()
}

func consume(ctx context.Context, broker, topic, count string) error {
	left, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	start := kgo.ConsumeResetOffset(kgo.NewOffset().AtStart())
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumeTopics(topic), start, kgo.AllowAutoTopicCreation())
	if err != nil {
		return err
	}
	defer client.Close()
	for left > 0 {
		fetches := client.PollRecords(ctx, left)
		if err := fetches.Err(); err != nil {
			return err
		}
		for _, record := range fetches.Records() {
			if err := print(read(record.Value, kotel.NewRecordCarrier(record))); err != nil {
				return err
			}
			left--
		}
	}
	return nil
}

func get(ctx context.Context, url, format, headers string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if err := inject(ctx, format, headers, propagation.HeaderCarrier(request.Header)); err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	return print(Answer{Status: response.StatusCode, Body: string(body)})
}

// inject writes the position that the headers hold into the carrier, in the format.
func inject(ctx context.Context, format, headers string, carrier propagation.TextMapCarrier) error {
	given := propagation.MapCarrier{}
	if err := json.Unmarshal([]byte(headers), &given); err != nil {
		return err
	}
	propagator, known := formats[format]
	if !known {
		return fmt.Errorf("expected the format tracecontext, b3 or b3multi, got %q", format)
	}
	propagator.Inject(w3c.Extract(b3Single.Extract(ctx, given), given), carrier)
	return nil
}

func read(value []byte, carrier propagation.TextMapCarrier) Record {
	result := Record{
		Value:        string(value),
		Headers:      [][2]string{},
		TraceContext: position(traceContext.Extract(context.Background(), carrier)),
		B3:           position(b3Single.Extract(context.Background(), carrier)),
		Baggage:      map[string]string{},
	}
	for _, key := range carrier.Keys() {
		result.Headers = append(result.Headers, [2]string{key, carrier.Get(key)})
	}
	for _, member := range baggage.FromContext(propagation.Baggage{}.Extract(context.Background(), carrier)).Members() {
		result.Baggage[member.Key()] = member.Value()
	}
	return result
}

func position(ctx context.Context) *Position {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return nil
	}
	sent := propagation.MapCarrier{}
	b3Single.Inject(ctx, sent)
	return &Position{
		TraceID:    span.TraceID().String(),
		SpanID:     span.SpanID().String(),
		Sampled:    span.IsSampled(),
		TraceState: span.TraceState().String(),
		B3:         sent["b3"],
	}
}

func print(line any) error {
	return json.NewEncoder(os.Stdout).Encode(line)
}
