//! A run's curves for TensorBoard: `tensorboard --logdir runs` shows all runs beside each other.
//!
//! The format is a file of records, each a length, the length's checksum, an `Event` of TensorFlow's
//! `event.proto` and the event's checksum (`tsl/lib/io/record_writer.cc`); the checksums are CRC-32C, masked.
//! Only the fields that are written are declared here, with their numbers.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use prost::Message;

use crate::evaluations::Evaluated;
use crate::growing::GrowingFile;
use crate::progress::StepMetrics;

/// What a reader looks for in the first event.
const FILE_VERSION: &str = "brain.Event:2";

/// An event file, begun each time a coordinator takes charge of the run.
#[derive(Debug)]
pub(crate) struct TensorBoard {
    file: GrowingFile,
}

impl TensorBoard {
    /// Begins a file in `folder`. `now` is the time since 1970, and `first_step` the steps committed so far:
    /// TensorBoard forgets what an earlier file says of later ones.
    pub(crate) fn begin(
        folder: &Path,
        recipe_toml: &str,
        first_step: u64,
        now: Duration,
    ) -> io::Result<TensorBoard> {
        fs::create_dir_all(folder)?;
        // Readers take the files of a folder in the order of their names, which begin with the time.
        let name = format!("events.out.tfevents.{:010}.{:09}", now.as_secs(), now.subsec_nanos());
        let mut board = TensorBoard { file: GrowingFile::open(&folder.join(name))? };
        board.write(now, 0, |event| event.file_version = FILE_VERSION.to_owned());
        board.write(now, first_step + 1, |event| event.session_log = Some(SessionLog { status: START }));
        if first_step == 0 {
            // Indented by four: TensorBoard renders Markdown.
            let text: String = recipe_toml.lines().map(|line| format!("    {line}\n")).collect();
            board.write(now, 0, |event| event.summary = Some(Summary { values: vec![Value::text(text)] }));
        }
        Ok(board)
    }

    /// A committed step.
    pub(crate) fn step(&mut self, metrics: &StepMetrics, now: Duration) {
        let seconds = &metrics.seconds;
        let values = [
            ("train/loss", metrics.loss),
            ("train/collapse_level", metrics.collapse_level),
            ("train/learning_rate", metrics.learning_rate),
            ("train/gradient_norm", metrics.gradient_norm),
            ("train/epoch", metrics.epoch as f64),
            ("speed/images_per_second", metrics.images_per_second),
            ("speed/step_seconds", seconds.step),
            ("speed/data_seconds", seconds.data),
            ("speed/forward_seconds", seconds.forward),
            ("speed/backward_seconds", seconds.backward),
            ("speed/all_reduce_seconds", seconds.all_reduce),
            ("speed/update_seconds", seconds.update),
        ];
        let monitored = metrics.monitors.iter().flat_map(|monitors| {
            let (norms, ratios) = (&monitors.gradient_norms, &monitors.update_ratios);
            [
                ("health/effective_dimensions", monitors.effective_dimensions),
                ("health/statistics_change", monitors.statistics_change),
                ("health/gradient_norm_backbone", norms.backbone),
                ("health/gradient_norm_projector", norms.projector),
                ("health/gradient_norm_predictor", norms.predictor),
                ("health/update_ratio_backbone", ratios.backbone),
                ("health/update_ratio_projector", ratios.projector),
                ("health/update_ratio_predictor", ratios.predictor),
            ]
        });
        // A curve has no place for what is not a number.
        let values = values.into_iter().chain(monitored).filter(|(_, value)| value.is_finite());
        let values = values.map(|(tag, value)| Value::scalar(tag.to_owned(), value)).collect();
        self.write(now, metrics.step, |event| event.summary = Some(Summary { values }));
    }

    /// The result of an evaluation.
    pub(crate) fn evaluated(&mut self, evaluated: &Evaluated, now: Duration) {
        let scalar = |(name, value): (&String, &f64)| {
            Value::scalar(format!("evaluation/{}_{name}", evaluated.evaluation), *value)
        };
        let values = evaluated.figures.iter().map(scalar).collect();
        self.write(now, evaluated.step, |event| event.summary = Some(Summary { values }));
    }

    /// Writes what had to wait while the disk was full, if there is room again.
    pub(crate) fn catch_up(&mut self) {
        self.file.catch_up();
    }

    fn write(&mut self, now: Duration, step: u64, fill: impl FnOnce(&mut Event)) {
        let mut event = Event { wall_time: now.as_secs_f64(), step: step as i64, ..Event::default() };
        fill(&mut event);
        // One write for one record, so that a reader never waits for its end. Where it fails, that is said, and the run
        // goes on without it.
        let _ = self.file.append(&record(&event.encode_to_vec()));
    }
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), event, &masked_crc(event)].concat()
}

/// The checksum, turned and shifted so that it may be stored beside data that holds checksums itself.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, tag = "3")]
    file_version: String,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<Tensor>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

/// `DataType.DT_STRING`.
const STRING: i32 = 7;

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int32, tag = "1")]
    data_type: i32,
    #[prost(bytes = "vec", repeated, tag = "8")]
    strings: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin: Option<Plugin>,
}

#[derive(Clone, PartialEq, Message)]
struct Plugin {
    #[prost(string, tag = "1")]
    name: String,
}

impl Value {
    fn scalar(tag: String, value: f64) -> Value {
        Value { tag, simple_value: Some(value as f32), ..Value::default() }
    }

    fn text(text: String) -> Value {
        let tensor = Tensor { data_type: STRING, strings: vec![text.into_bytes()] };
        let metadata = Metadata { plugin: Some(Plugin { name: "text".to_owned() }) };
        Value { tag: "recipe".to_owned(), tensor: Some(tensor), metadata: Some(metadata), ..Value::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StepSeconds;

    fn metrics(step: u64) -> StepMetrics {
        let seconds =
            StepSeconds { data: 0.1, forward: 0.2, backward: 0.5, all_reduce: 0.2, update: 0.0, step: 1.0 };
        StepMetrics {
            step,
            total_steps: 200,
            epoch: 2,
            total_epochs: 10,
            loss: -0.5,
            collapse_level: 0.951,
            learning_rate: 0.05,
            gradient_norm: 1.0,
            skipped: false,
            monitors: None,
            images_per_second: 128.0,
            seconds,
            generation: 1,
        }
    }

    /// The events of a file, each with its checksums proved.
    fn events(bytes: &[u8]) -> Vec<Event> {
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
        let event = Event { file_version: FILE_VERSION.to_owned(), ..Event::default() };
        let bytes = record(&event.encode_to_vec());
        assert_eq!(bytes[..8], [15, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[12..14], [0x1a, 13]);
        // The check value of CRC-32C, and what Python makes of it by the formula of `crc32c.h`.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5_u32.to_le_bytes());
    }

    #[test]
    fn a_resumed_run_has_a_second_file_that_overrules_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let now = |seconds: u64| Duration::from_secs(1_700_000_000 + seconds);
        let mut board = TensorBoard::begin(folder.path(), "name = \"a\"", 0, now(0)).unwrap();
        board.step(&metrics(1), now(1));
        let figures = [("top1_k20_t0.07".to_owned(), 0.25)].into();
        let evaluated = Evaluated { evaluation: "knn".into(), step: 1, figures, card: "a.json".into() };
        board.evaluated(&evaluated, now(2));
        TensorBoard::begin(folder.path(), "name = \"a\"", 7, now(3)).unwrap();

        let mut files: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let first = events(&fs::read(&files[0]).unwrap());
        let values = |event: &Event| event.summary.clone().unwrap().values;
        assert_eq!(first[0].file_version, FILE_VERSION);
        assert_eq!(values(&first[2])[0].tensor.as_ref().unwrap().strings, [b"    name = \"a\"\n".to_vec()]);
        assert_eq!((first[3].step, first[3].wall_time), (1, 1_700_000_001.0));
        assert_eq!(values(&first[3])[0], Value::scalar("train/loss".to_owned(), -0.5));
        assert_eq!(values(&first[4]), [Value::scalar("evaluation/knn_top1_k20_t0.07".to_owned(), 0.25)]);
        let second = events(&fs::read(&files[1]).unwrap());
        assert_eq!((second.len(), second[1].step), (2, 8));
        assert_eq!(second[1].session_log, Some(SessionLog { status: START }));
    }
}
