//! A table as Parquet: `path` and `label` as strings, `features` as a list of float32, which pandas, Polars and
//! DuckDB read as they are.

use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use tempfile::NamedTempFile;

use super::{About, Row, Table};
use crate::aside;

const SCHEMA: &str = "message features {
    required binary path (UTF8);
    optional binary label (UTF8);
    required group features (LIST) { repeated group list { required float element; } }
}";

/// Features of a row group: large enough to read fast, small enough to hold.
const ROW_GROUP_BYTES: usize = 16 << 20;

pub(super) struct ParquetTable {
    writer: SerializedFileWriter<BufWriter<NamedTempFile>>,
    columns: usize,
    /// The row group in the making.
    paths: Vec<ByteArray>,
    labels: Vec<Option<ByteArray>>,
    features: Vec<f32>,
}

impl ParquetTable {
    pub(super) fn begin(path: &Path, columns: usize, about: &About<'_>) -> io::Result<ParquetTable> {
        let schema = parse_message_type(SCHEMA).expect("the schema is a constant and correct");
        let features = ColumnPath::from(["features", "list", "element"].map(str::to_owned).to_vec());
        let pairs = about.pairs().into_iter().map(|(key, value)| KeyValue::new(key, value));
        let properties = WriterProperties::builder()
            // Features hardly repeat, and nobody looks for their largest.
            .set_column_dictionary_enabled(features.clone(), false)
            .set_column_statistics_enabled(features, EnabledStatistics::None)
            .set_key_value_metadata(Some(pairs.collect()))
            .build();
        let out = BufWriter::new(aside::begin(path)?);
        let writer = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties))?;
        Ok(ParquetTable { writer, columns, paths: Vec::new(), labels: Vec::new(), features: Vec::new() })
    }

    fn write_row_group(&mut self) -> io::Result<()> {
        let mut group = self.writer.next_row_group()?;
        write_column::<ByteArrayType>(&mut group, &self.paths, None, None)?;
        let defined: Vec<i16> = self.labels.iter().map(|label| i16::from(label.is_some())).collect();
        let labels: Vec<ByteArray> = self.labels.drain(..).flatten().collect();
        write_column::<ByteArrayType>(&mut group, &labels, Some(&defined), None)?;
        // Each list's first element begins it, the others go on with it.
        let repeated: Vec<i16> =
            (0..self.features.len()).map(|place| i16::from(place % self.columns > 0)).collect();
        let defined = vec![1; self.features.len()];
        write_column::<FloatType>(&mut group, &self.features, Some(&defined), Some(&repeated))?;
        group.close()?;
        self.paths.clear();
        self.features.clear();
        Ok(())
    }
}

fn write_column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, BufWriter<NamedTempFile>>,
    values: &[T::T],
    defined: Option<&[i16]>,
    repeated: Option<&[i16]>,
) -> io::Result<()> {
    let mut column = group.next_column()?.expect("the schema has three columns");
    column.typed::<T>().write_batch(values, defined, repeated)?;
    Ok(column.close()?)
}

impl Table for ParquetTable {
    fn write(&mut self, rows: &[Row], features: &[f32]) -> io::Result<()> {
        self.paths.extend(rows.iter().map(|row| ByteArray::from(row.path.as_str())));
        self.labels.extend(rows.iter().map(|row| row.label.as_deref().map(ByteArray::from)));
        self.features.extend(features);
        if size_of_val(self.features.as_slice()) < ROW_GROUP_BYTES {
            return Ok(());
        }
        self.write_row_group()
    }

    fn finish(mut self: Box<Self>, path: &Path) -> io::Result<()> {
        if !self.paths.is_empty() {
            self.write_row_group()?;
        }
        aside::publish(self.writer.into_inner()?.into_inner()?, path)
    }
}
