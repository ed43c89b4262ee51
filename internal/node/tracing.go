package node

import (
	"context"
	"log/slog"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/spacestore/space/capsule"
)

// tracer makes the node's spans. Until startTracing has found somebody to send
// them to, they are those of a no-op provider.
func tracer() trace.Tracer { return otel.GetTracerProvider().Tracer("github.com/spacestore/space") }

// traceEnd is how long the last spans may take on their way out.
const traceEnd = 5 * time.Second

// startTracing exports spans over OTLP, as the OTEL_EXPORTER_OTLP_* variables
// of OpenTelemetry say, if they name an endpoint. A collector that is slow or
// gone costs spans, nothing else: the queue is bounded and never waited for.
func startTracing(ctx context.Context, version string, log *slog.Logger) (stop func(), err error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return func() {}, nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, capsule.Wrap(capsule.Invalid, err, "traces")
	}
	// Without a schema URL, so that it merges with whatever the library's is.
	who, err := resource.Merge(resource.Default(), resource.NewSchemaless(
		attribute.String("service.name", serviceName()), attribute.String("service.version", version)))
	if err != nil {
		return nil, capsule.Wrap(capsule.Other, err, "traces")
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(who))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces", "error", err) }))
	otel.SetTracerProvider(provider)
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), traceEnd)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			log.Warn("the last traces did not get out", "error", err)
		}
	}, nil
}

func serviceName() string {
	if name := os.Getenv("OTEL_SERVICE_NAME"); name != "" {
		return name
	}
	return "space"
}

// span runs fn in a span, which tells how it ended.
func span(ctx context.Context, name string, fn func(context.Context) error, about ...attribute.KeyValue) error {
	ctx, s := tracer().Start(ctx, name, trace.WithAttributes(about...))
	defer s.End()
	err := fn(ctx)
	failed(s, err)
	return err
}

// failed has a span tell of an error, if there is one.
func failed(s trace.Span, err error) {
	if err != nil {
		s.SetStatus(codes.Error, err.Error())
		s.SetAttributes(attribute.String("error.type", capsule.KindOf(err).String()))
	}
}

// note adds to what the span of ctx tells.
func note(ctx context.Context, about ...attribute.KeyValue) {
	trace.SpanFromContext(ctx).SetAttributes(about...)
}

// sameTrace returns a context of the trace of ctx, which has nothing else of it: what it
// is for may outlive that.
func sameTrace(ctx context.Context) context.Context {
	return trace.ContextWithSpanContext(context.Background(), trace.SpanContextFromContext(ctx))
}

// happened is a span of what began at a time and is over now, with the error that it ended
// with or nil. It returns a context of its trace.
func happened(ctx context.Context, name string, began time.Time, err error, about ...attribute.KeyValue) context.Context {
	ctx, s := tracer().Start(ctx, name, trace.WithTimestamp(began), trace.WithAttributes(about...))
	failed(s, err)
	s.End()
	return sameTrace(ctx)
}
