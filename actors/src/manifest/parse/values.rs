//! From a TOML value to a Rust value, with what was expected and what was found.
//!
//! Owns types and ranges of single values. Messages start with `is`, after the name of the key.

use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::super::error::nearest;
use super::super::{
    CarrierKind, CongestionKind, DeviceKind, HostKeys, Isolation, LauncherKind, LinkClass, Quality,
    TransportKind,
};
use super::section::Fault;
use crate::request::{Dtype, TextEncoderPolicy, WireDtype};

/// A type that a value of a manifest can have.
pub(super) trait FromToml: Sized {
    /// Reads it.
    fn from_toml(value: &Spanned<DeValue<'_>>) -> Result<Self, Fault>;
}

/// What a value is, in words and with its text when that is short.
pub(super) fn kind_of(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn expected(span: Range<usize>, value: &DeValue<'_>, what: &str) -> Fault {
    let message = format!("is {}, expected {what}", kind_of(value));
    Fault { span, message, advice: None }
}

impl FromToml for String {
    fn from_toml(value: &Spanned<DeValue<'_>>) -> Result<Self, Fault> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            other => Err(expected(value.span(), other, "a string")),
        }
    }
}

impl FromToml for bool {
    fn from_toml(value: &Spanned<DeValue<'_>>) -> Result<Self, Fault> {
        match value.get_ref() {
            DeValue::Boolean(value) => Ok(*value),
            other => Err(expected(value.span(), other, "true or false")),
        }
    }
}

impl FromToml for PathBuf {
    fn from_toml(value: &Spanned<DeValue<'_>>) -> Result<Self, Fault> {
        match value.get_ref() {
            DeValue::String(text) if !text.is_empty() => Ok(PathBuf::from(text.as_ref())),
            other => Err(expected(value.span(), other, "a path")),
        }
    }
}

/// A whole number from 0 to `max`.
fn whole(value: &Spanned<DeValue<'_>>, max: u64) -> Result<u64, Fault> {
    let number = match value.get_ref() {
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    };
    number.filter(|&number| number <= max).ok_or_else(|| {
        expected(value.span(), value.get_ref(), &format!("a whole number from 0 to {max}"))
    })
}

macro_rules! whole_number {
    ($($type:ty),*) => {$(
        impl FromToml for $type {
            fn from_toml(value: &Spanned<DeValue<'_>>) -> Result<Self, Fault> {
                let max = <$type>::MAX;
                Ok(whole(value, u64::from(max))? as $type)
            }
        }
    )*};
}
whole_number!(u8, u16, u32, u64);

impl FromToml for f64 {
    fn from_toml(value: &Spanned<DeValue<'_>>) -> Result<Self, Fault> {
        let text = match value.get_ref() {
            DeValue::Integer(number) => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            other => return Err(expected(value.span(), other, "a number")),
        };
        let number = text.replace('_', "").parse::<Self>().ok().filter(|x| x.is_finite());
        number.ok_or_else(|| expected(value.span(), value.get_ref(), "a finite number"))
    }
}

impl FromToml for usize {
    fn from_toml(value: &Spanned<DeValue<'_>>) -> Result<Self, Fault> {
        u32::from_toml(value).map(|number| number as usize)
    }
}

impl<T: FromToml> FromToml for Vec<T> {
    fn from_toml(value: &Spanned<DeValue<'_>>) -> Result<Self, Fault> {
        match value.get_ref() {
            DeValue::Array(items) => items
                .iter()
                .map(|item| {
                    T::from_toml(item).map_err(|fault| Fault {
                        message: format!("holds an item that {}", fault.message),
                        ..fault
                    })
                })
                .collect(),
            other => Err(expected(value.span(), other, "an array")),
        }
    }
}

impl FromToml for (u16, u16) {
    fn from_toml(value: &Spanned<DeValue<'_>>) -> Result<Self, Fault> {
        match value.get_ref() {
            DeValue::Array(items) => match items.iter().collect::<Vec<_>>().as_slice() {
                [first, last] => Ok((u16::from_toml(first)?, u16::from_toml(last)?)),
                found => {
                    let message = format!(
                        "is an array of {}, expected two ports: the first and the last",
                        found.len()
                    );
                    Err(Fault { span: value.span(), message, advice: None })
                }
            },
            other => Err(expected(value.span(), other, "an array of two ports, first and last")),
        }
    }
}

/// Enums that are written as one of some words.
macro_rules! words {
    ($($type:ty: $($word:literal => $variant:expr),+;)*) => {$(
        impl FromToml for $type {
            fn from_toml(value: &Spanned<DeValue<'_>>) -> Result<Self, Fault> {
                const KNOWN: &[&str] = &[$($word),+];
                match value.get_ref() {
                    DeValue::String(text) => match text.as_ref() {
                        $($word => Ok($variant),)+
                        other => Err(Fault {
                            span: value.span(),
                            message: format!("is \"{other}\", which is not known"),
                            advice: Some(nearest(other, KNOWN.iter().copied())),
                        }),
                    },
                    other => {
                        let words = format!("one of \"{}\"", KNOWN.join("\", \""));
                        Err(expected(value.span(), other, &words))
                    }
                }
            }
        }
    )*};
}

words! {
    DeviceKind: "cpu" => DeviceKind::Cpu, "cuda" => DeviceKind::Cuda;
    Dtype: "f32" => Dtype::F32, "f16" => Dtype::F16, "bf16" => Dtype::Bf16;
    LinkClass: "same-node" => LinkClass::SameNode, "other-node" => LinkClass::OtherNode;
    Quality: "any" => Quality::Any, "exact" => Quality::Exact;
    Isolation: "process" => Isolation::Process, "thread" => Isolation::Thread;
    LauncherKind: "local" => LauncherKind::Local, "ssh" => LauncherKind::Ssh;
    HostKeys: "strict" => HostKeys::Strict, "accept-new" => HostKeys::AcceptNew;
    TextEncoderPolicy: "release" => TextEncoderPolicy::Release,
        "resident" => TextEncoderPolicy::Resident;
    CongestionKind: "cubic" => CongestionKind::Cubic, "new-reno" => CongestionKind::NewReno,
        "bbr" => CongestionKind::Bbr, "auto" => CongestionKind::Auto;
    WireDtype: "f32" => WireDtype::F32, "bf16" => WireDtype::Bf16, "f16" => WireDtype::F16,
        "int8" => WireDtype::Int8;
    TransportKind: "quic" => TransportKind::Quic, "ucx" => TransportKind::Ucx,
        "auto" => TransportKind::Auto, "in-process" => TransportKind::InProcess;
    CarrierKind: "quic" => CarrierKind::Quic, "ucx" => CarrierKind::Ucx,
        "auto" => CarrierKind::Auto;
}
