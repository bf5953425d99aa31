//! What is known of the public archives before anything is downloaded.

/// A gzipped tar archive, and the folder that is made of it. It is plain data: a mirror is another `url`, and
/// a test has archives of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Where it is downloaded, over http or https: the sums protect the content, not the way.
    pub url: String,
    /// Its length.
    pub bytes: u64,
    /// Its MD5 sum, in lower-case hexadecimal digits, as its authors or its long-time users publish it.
    pub md5: String,
    /// The folder that it holds, and that is made.
    pub folder: String,
    /// The files that are taken from that folder. Whatever else the archive holds is passed over.
    pub files: Vec<ArchivedFile>,
}

/// One file of an [`Archive`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedFile {
    /// Its name within the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its MD5 sum, where one is published.
    pub md5: Option<String>,
}

impl Archive {
    /// STL-10 in its binary layout. The sums are those that torchvision checks.
    pub fn stl10() -> Archive {
        let files = [
            ("unlabeled_X.bin", 2_764_800_000, "5242ba1fed5e4be9e1e742405eb56ca4"),
            ("train_X.bin", 138_240_000, "918c2871b30a85fa023e0c44e0bee87f"),
            ("train_y.bin", 5_000, "5a34089d4802c674881badbb80307741"),
            ("test_X.bin", 221_184_000, "7f263ba9f9e0b06b93213547f721ac82"),
            ("test_y.bin", 8_000, "36f9794fa4beb8a2c72628de14fa638e"),
            ("fold_indices.txt", 47_794, "4bbf8cd098ab9f87fe03fbcb37c06b28"),
            ("class_names.txt", 55, "6de44d022411c4d5cda4673b7f147c3f"),
        ];
        Archive {
            url: "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz".to_owned(),
            bytes: 2_640_397_119,
            md5: "91f7769df0f17e558f3565bffb0c7dfb".to_owned(),
            folder: "stl10_binary".to_owned(),
            files: files.map(|(name, bytes, md5)| ArchivedFile::new(name, bytes, Some(md5))).to_vec(),
        }
    }

    /// CIFAR-10 in its binary layout. Its authors publish the sum of the archive and the lengths of the
    /// files of images. The archive also has a text of class names and a link to the authors' page, of which
    /// they publish nothing and which nobody here reads.
    pub fn cifar10() -> Archive {
        let names = [
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
            "test_batch.bin",
        ];
        Archive {
            url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz".to_owned(),
            bytes: 170_052_171,
            md5: "c32a1d4ab5d03f1284b67883e8d87530".to_owned(),
            folder: "cifar-10-batches-bin".to_owned(),
            files: names.map(|name| ArchivedFile::new(name, 30_730_000, None)).to_vec(),
        }
    }

    /// What the files take once they are extracted.
    pub fn extracted_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Whether every file has a sum, so that files which are there already can be told from others of their lengths.
    pub fn has_sums(&self) -> bool {
        self.files.iter().all(|file| file.md5.is_some())
    }

    /// What has to be read to check the files.
    pub(super) fn hashed_bytes(&self) -> u64 {
        let hashed = self.files.iter().filter(|file| file.md5.is_some());
        hashed.fold(0, |sum, file| sum.saturating_add(file.bytes))
    }
}

impl ArchivedFile {
    fn new(name: &str, bytes: u64, md5: Option<&str>) -> ArchivedFile {
        ArchivedFile { name: name.to_owned(), bytes, md5: md5.map(str::to_owned) }
    }
}
