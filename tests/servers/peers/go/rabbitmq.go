package main

import (
	"context"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// tableCarrier is the headers of a message of RabbitMQ.
type tableCarrier amqp.Table

func (table tableCarrier) Get(key string) string {
	value, _ := table[key].(string)
	return value
}

func (table tableCarrier) Set(key, value string) { table[key] = value }

func (table tableCarrier) Keys() []string {
	var keys []string
	for key := range table {
		keys = append(keys, key)
	}
	return keys
}

// withChannel runs the work on a channel of its own.
func withChannel(url string, work func(*amqp.Channel) error) error {
	connection, err := amqp.Dial(url)
	if err != nil {
		return err
	}
	defer connection.Close()
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	return work(channel)
}

func publish(ctx context.Context, url, queue, format, headers string) error {
	message := amqp.Publishing{Headers: amqp.Table{}, Body: []byte("from go")}
	if err := inject(ctx, format, headers, tableCarrier(message.Headers)); err != nil {
		return err
	}
	return withChannel(url, func(channel *amqp.Channel) error {
		if err := channel.Confirm(false); err != nil {
			return err
		}
		confirmation, err := channel.PublishWithDeferredConfirmWithContext(ctx, "", queue, false, false, message)
		if err != nil {
			return err
		}
		_, err = confirmation.WaitContext(ctx)
		return err
	})
}

// look prints the first messages of a queue; none is acknowledged, so they are all there again when the connection is closed.
func look(ctx context.Context, url, queue, count string) error {
	left, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	return withChannel(url, func(channel *amqp.Channel) error {
		for left > 0 {
			message, came, err := channel.Get(queue, false)
			switch {
			case err != nil:
				return err
			case ctx.Err() != nil:
				return ctx.Err()
			case !came:
				time.Sleep(10 * time.Millisecond)
			default:
				if err := print(read(message.Body, tableCarrier(message.Headers))); err != nil {
					return err
				}
				left--
			}
		}
		return nil
	})
}
