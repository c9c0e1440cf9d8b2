//! The W3C trace context: what makes the spans of all processes one trace.
//!
//! Owns reading and writing `traceparent` (W3C Trace Context, level 1, section 3.2) and the way
//! between it and `tracing` spans. Installs nothing: where no OpenTelemetry layer listens, spans
//! have no context, nothing travels and nothing is linked.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Characters of a `traceparent` of version 00.
const TRACEPARENT_CHARS: usize = 55;

/// The context of the caller's current span.
pub(crate) fn current() -> Option<String> {
    of(&Span::current())
}

/// The context of `span` as a `traceparent`; none when nothing records it.
pub(crate) fn of(span: &Span) -> Option<String> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| {
        let (trace, parent) = (context.trace_id(), context.span_id());
        format!("00-{trace}-{parent}-{:02x}", context.trace_flags().to_u8())
    })
}

/// Makes `span`, which nothing has entered yet, a child of the span in another process. What is
/// no trace context is ignored, as the standard asks.
pub(crate) fn adopt(span: &Span, traceparent: Option<&str>) {
    if let Some(context) = traceparent.and_then(parse) {
        let parent = opentelemetry::Context::new().with_remote_span_context(context);
        if let Err(error) = span.set_parent(parent) {
            // Without a layer there is nothing to be a child in.
            tracing::trace!(?error, "a span takes no parent");
        }
    }
}

/// Links the current span to the span in another process that it continues.
pub(crate) fn link_current(traceparent: Option<&str>) {
    if let Some(context) = traceparent.and_then(parse) {
        Span::current().add_link(context);
    }
}

/// Marks `span` as failed.
pub(crate) fn fail(span: &Span, cause: &str) {
    if !span.is_disabled() {
        span.set_status(opentelemetry::trace::Status::error(cause.to_owned()));
    }
}

fn parse(text: &str) -> Option<SpanContext> {
    let plain = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c) || c == '-';
    if text.len() < TRACEPARENT_CHARS || !text.get(..TRACEPARENT_CHARS)?.chars().all(plain) {
        return None;
    }
    let mut fields = text.split('-');
    let (version, trace, parent, flags) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let lengths = [version.len(), trace.len(), parent.len(), flags.len()];
    // A later version may add fields, version 00 has these four.
    let known = version == "00" && text.len() == TRACEPARENT_CHARS;
    let later = version != "00" && version != "ff";
    if lengths != [2, 32, 16, 2] || !(known || later) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(parent).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read() {
        let context = parse(EXAMPLE).expect("the standard's own example");
        assert_eq!(context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span_id().to_string(), "00f067aa0ba902b7");
        assert!(context.is_sampled() && context.is_remote());
        let later = format!("01{}-more", &EXAMPLE[2..]);
        assert!(parse(&later).is_some());
    }

    #[test]
    fn what_is_none_is_ignored() {
        let nothing = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let upper = EXAMPLE.to_uppercase();
        let wrong = [
            "",
            "00",
            nothing,
            &upper,
            &EXAMPLE[..54],
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473600f067aa0ba902b7--01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b\u{e9}-01",
        ];
        for text in wrong {
            assert!(parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn without_a_layer_there_is_no_context() {
        let span = tracing::info_span!("alone");
        assert_eq!(of(&span), None);
        adopt(&span, Some(EXAMPLE));
        assert_eq!(of(&span), None);
    }
}
