//! Events as TensorBoard reads them: records of a file, and the messages in them.
//!
//! A record is a length, the length's checksum, an `Event` of TensorFlow's `event.proto` and the event's checksum
//! (`tsl/lib/io/record_writer.cc`); the checksums are CRC-32C, masked. Of `summary.proto`, `histogram.proto`,
//! `tensor.proto`, `struct.proto` and the hparams plugin's `plugin_data.proto` only the fields that are written are
//! declared here, with their numbers.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::time::Duration;

use image::ImageReader;
use prost::{Message, Oneof};

use super::histogram::Histogram;

/// What a reader looks for in the first event.
const FILE_VERSION: &str = "brain.Event:2";

/// An event as it lies in a file.
pub(super) fn record(event: &Event) -> Vec<u8> {
    let event = event.encode_to_vec();
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), &event, &masked_crc(&event)].concat()
}

/// The checksum, turned and shifted so that it may be stored beside data that holds checksums itself.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Event {
    #[prost(double, tag = "1")]
    pub(super) wall_time: f64,
    #[prost(int64, tag = "2")]
    pub(super) step: i64,
    #[prost(string, tag = "3")]
    pub(super) file_version: String,
    #[prost(message, optional, tag = "5")]
    pub(super) summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    pub(super) session_log: Option<SessionLog>,
}

impl Event {
    fn at(now: Duration, step: u64) -> Event {
        Event { wall_time: now.as_secs_f64(), step: step as i64, ..Event::default() }
    }

    /// The first event of a file.
    pub(super) fn version(now: Duration) -> Event {
        Event { file_version: FILE_VERSION.to_owned(), ..Event::at(now, 0) }
    }

    /// Whatever earlier files say of `step` and later ones is void.
    pub(super) fn start(now: Duration, step: u64) -> Event {
        Event { session_log: Some(SessionLog { status: START }), ..Event::at(now, step) }
    }

    pub(super) fn summary(now: Duration, step: u64, values: Vec<Value>) -> Event {
        Event { summary: Some(Summary { values }), ..Event::at(now, step) }
    }
}

/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) values: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Value {
    #[prost(string, tag = "1")]
    pub(super) tag: String,
    #[prost(float, optional, tag = "2")]
    pub(super) simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    picture: Option<Picture>,
    #[prost(message, optional, tag = "5")]
    pub(super) histogram: Option<HistogramOfValues>,
    #[prost(message, optional, tag = "8")]
    pub(super) tensor: Option<Tensor>,
    #[prost(message, optional, tag = "9")]
    pub(super) metadata: Option<Metadata>,
}

impl Value {
    pub(super) fn scalar(tag: String, value: f64) -> Value {
        Value { tag, simple_value: Some(value as f32), ..Value::default() }
    }

    /// Markdown.
    pub(super) fn text(tag: &str, text: String) -> Value {
        let tensor = Tensor { data_type: STRING, strings: vec![text.into_bytes()], ..Tensor::default() };
        let plugin = Plugin { name: "text".to_owned(), content: Vec::new() };
        let metadata = Metadata { plugin: Some(plugin), ..Metadata::default() };
        Value { tag: tag.to_owned(), tensor: Some(tensor), metadata: Some(metadata), ..Value::default() }
    }

    /// A PNG or JPEG; `None` if it is neither.
    pub(super) fn picture(tag: &str, encoded: Vec<u8>) -> Option<Value> {
        let reader = ImageReader::new(Cursor::new(&encoded)).with_guessed_format().ok()?;
        let (width, height) = reader.into_dimensions().ok()?;
        let (width, height) = (width.try_into().ok()?, height.try_into().ok()?);
        let picture = Picture { height, width, colorspace: RGB, encoded };
        Some(Value { tag: tag.to_owned(), picture: Some(picture), ..Value::default() })
    }

    pub(super) fn histogram(tag: String, histogram: Histogram) -> Value {
        let Histogram { least, greatest, sum, square_sum, limits, counts } = histogram;
        let histogram = HistogramOfValues {
            min: least,
            max: greatest,
            num: counts.iter().sum(),
            sum,
            sum_squares: square_sum,
            bucket_limit: limits,
            bucket: counts,
        };
        Value { tag, histogram: Some(histogram), ..Value::default() }
    }

    /// What a run was begun with, by which TensorBoard compares runs.
    pub(super) fn settings(
        values: impl IntoIterator<Item = (String, Setting)>,
        group: &str,
        now: Duration,
    ) -> Value {
        let settings =
            values.into_iter().map(|(key, kind)| (key, SettingValue { kind: Some(kind) })).collect();
        let start = SessionStart { settings, group_name: group.to_owned(), start_time_s: now.as_secs_f64() };
        Value::of_settings("session_start_info", &HyperParameters::start(start))
    }

    /// How that run ended.
    pub(super) fn end(succeeded: bool, now: Duration) -> Value {
        let status = if succeeded { SUCCESS } else { FAILURE };
        let end = SessionEnd { status, end_time_s: now.as_secs_f64() };
        Value::of_settings("session_end_info", &HyperParameters::end(end))
    }

    /// The plugin wants its data beside a tensor, which means nothing.
    fn of_settings(name: &str, data: &HyperParameters) -> Value {
        let shape = Some(Shape { dims: vec![Dim { size: 1 }] });
        let tensor = Tensor { data_type: FLOAT, shape, floats: vec![0.0], ..Tensor::default() };
        let plugin = Plugin { name: "hparams".to_owned(), content: data.encode_to_vec() };
        let metadata = Metadata { plugin: Some(plugin), data_class: CLASS_OF_TENSORS };
        let tag = format!("_hparams_/{name}");
        Value { tag, tensor: Some(tensor), metadata: Some(metadata), ..Value::default() }
    }
}

/// `Summary.Image.colorspace`.
const RGB: i32 = 3;

#[derive(Clone, PartialEq, Message)]
struct Picture {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HistogramOfValues {
    #[prost(double, tag = "1")]
    min: f64,
    #[prost(double, tag = "2")]
    max: f64,
    #[prost(double, tag = "3")]
    pub(super) num: f64,
    #[prost(double, tag = "4")]
    sum: f64,
    #[prost(double, tag = "5")]
    sum_squares: f64,
    #[prost(double, repeated, tag = "6")]
    bucket_limit: Vec<f64>,
    #[prost(double, repeated, tag = "7")]
    bucket: Vec<f64>,
}

/// `DataType.DT_FLOAT` and `DataType.DT_STRING`.
const FLOAT: i32 = 1;
const STRING: i32 = 7;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Tensor {
    #[prost(int32, tag = "1")]
    data_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(float, repeated, tag = "5")]
    floats: Vec<f32>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub(super) strings: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "2")]
    dims: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {
    #[prost(int64, tag = "1")]
    size: i64,
}

/// `DataClass.DATA_CLASS_TENSOR`.
const CLASS_OF_TENSORS: i32 = 2;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin: Option<Plugin>,
    #[prost(int32, tag = "4")]
    data_class: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Plugin {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    content: Vec<u8>,
}

/// `HParamsPluginData`.
#[derive(Clone, PartialEq, Message)]
struct HyperParameters {
    #[prost(message, optional, tag = "3")]
    start: Option<SessionStart>,
    #[prost(message, optional, tag = "4")]
    end: Option<SessionEnd>,
}

impl HyperParameters {
    fn start(start: SessionStart) -> HyperParameters {
        HyperParameters { start: Some(start), end: None }
    }

    fn end(end: SessionEnd) -> HyperParameters {
        HyperParameters { start: None, end: Some(end) }
    }
}

#[derive(Clone, PartialEq, Message)]
struct SessionStart {
    #[prost(btree_map = "string, message", tag = "1")]
    settings: BTreeMap<String, SettingValue>,
    #[prost(string, tag = "4")]
    group_name: String,
    #[prost(double, tag = "5")]
    start_time_s: f64,
}

/// `Status.STATUS_SUCCESS` and `Status.STATUS_FAILURE`.
const SUCCESS: i32 = 1;
const FAILURE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct SessionEnd {
    #[prost(int32, tag = "1")]
    status: i32,
    #[prost(double, tag = "2")]
    end_time_s: f64,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, Message)]
struct SettingValue {
    #[prost(oneof = "Setting", tags = "2, 3, 4")]
    kind: Option<Setting>,
}

/// The value of a setting.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Setting {
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Switch(bool),
}

#[cfg(test)]
pub(super) mod tests {
    use image::{ImageFormat, RgbImage};

    use super::*;

    /// The events of a file, each with its checksums proved.
    pub(crate) fn events(bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            let (length_crc, after) = after.split_at(4);
            assert_eq!(length_crc, masked_crc(length));
            let (event, after) = after.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            let (event_crc, after) = after.split_at(4);
            assert_eq!(event_crc, masked_crc(event));
            events.push(Event::decode(event).unwrap());
            rest = after;
        }
        events
    }

    /// As TensorFlow's `record_writer` writes the version event of time 0, byte for byte.
    #[test]
    fn a_record_is_tensorflows() {
        let bytes = record(&Event::version(Duration::ZERO));
        assert_eq!(bytes[..8], [15, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[12..14], [0x1a, 13]);
        // The check value of CRC-32C, and what Python makes of it by the formula of `crc32c.h`.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5_u32.to_le_bytes());
    }

    #[test]
    fn a_picture_says_its_size() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let mut encoded = Cursor::new(Vec::new());
            RgbImage::new(258, 9).write_to(&mut encoded, format).unwrap();
            let picture = Value::picture("views", encoded.get_ref().clone()).unwrap().picture.unwrap();
            assert_eq!((picture.width, picture.height, picture.encoded), (258, 9, encoded.into_inner()));
        }
        assert_eq!(Value::picture("views", b"\x89PNG".to_vec()), None);
    }
}
