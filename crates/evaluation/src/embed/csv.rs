//! A table as CSV (RFC 4180): `path,label,feature_0,feature_1,…`, with every number as short as it reads back.

use std::io::{self, BufWriter};
use std::path::Path;

use tempfile::NamedTempFile;

use super::{Row, Table};
use crate::aside;

pub(super) struct CsvTable {
    writer: csv::Writer<BufWriter<NamedTempFile>>,
    columns: usize,
}

impl CsvTable {
    pub(super) fn begin(path: &Path, columns: usize) -> io::Result<CsvTable> {
        let mut writer = csv::Writer::from_writer(BufWriter::new(aside::begin(path)?));
        let names = (0..columns).map(|column| format!("feature_{column}"));
        writer.write_record(["path", "label"].map(str::to_owned).into_iter().chain(names))?;
        Ok(CsvTable { writer, columns })
    }
}

impl Table for CsvTable {
    fn write(&mut self, rows: &[Row], features: &[f32]) -> io::Result<()> {
        for (row, features) in rows.iter().zip(features.chunks_exact(self.columns)) {
            self.writer.write_field(&row.path)?;
            self.writer.write_field(row.label.as_deref().unwrap_or_default())?;
            for feature in features {
                self.writer.write_field(feature.to_string())?;
            }
            self.writer.write_record(None::<&[u8]>)?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>, path: &Path) -> io::Result<()> {
        let buffer = self.writer.into_inner().map_err(csv::IntoInnerError::into_error)?;
        aside::publish(buffer.into_inner()?, path)
    }
}
