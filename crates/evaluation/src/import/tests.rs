//! Files that PyTorch wrote (`tests/fixtures/make_foreign_weights.py`), our own exports, and damaged ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use proptest::prelude::*;
use recipe::{Heads, Recipe, Start};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use simsiam::{Layout, State};

use super::{Imported, import};
use crate::encoder::Encoder;
use crate::export::{Names, export};

/// The fixtures' network.
const NETWORK: [&str; 3] = ["model.width=2", "model.projector_dim=6", "model.predictor_dim=3"];

fn recipe(changes: &[&str]) -> Recipe {
    let changes: Vec<String> = NETWORK.iter().chain(changes).map(|change| (*change).to_owned()).collect();
    Recipe::from_toml(recipe::QUICKSTART, &changes).unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/foreign").join(name)
}

fn start(path: &Path) -> Start {
    Start { weights: path.to_owned(), blake3: None, heads: None }
}

fn imported(path: &Path, changes: &[&str]) -> Imported {
    import(&recipe(changes), &start(path)).unwrap()
}

fn error(path: &Path, changes: &[&str]) -> String {
    import(&recipe(changes), &start(path)).unwrap_err().to_string()
}

/// The state with the numbers that PyTorch says the fixtures hold, and the seed's where `is_taken` says no.
fn expected(is_taken: impl Fn(&str) -> bool, round: impl Fn(f32) -> f32) -> State {
    let (bytes, layout) =
        (fs::read(fixture("expected.safetensors")).unwrap(), Layout::of(&recipe(&[]).model));
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut state = State::initial(&layout, 0);
    for (entries, values) in
        [(&layout.parameters, Arc::make_mut(&mut state.weights)), (&layout.statistics, &mut state.statistics)]
    {
        for entry in entries.iter().filter(|entry| is_taken(&entry.name)) {
            let numbers = tensors.tensor(&entry.name).unwrap().data().as_chunks::<4>().0;
            for (value, bytes) in values[entry.range.clone()].iter_mut().zip(numbers) {
                *value = round(f32::from_le_bytes(*bytes));
            }
        }
    }
    state
}

fn is_backbone(name: &str) -> bool {
    name.starts_with("encoder.") && !name.starts_with("encoder.fc.")
}

#[test]
fn pytorchs_files_give_pytorchs_numbers() {
    let whole = expected(|_| true, |value| value);
    let backbone = expected(is_backbone, |value| value);
    let rounded = expected(is_backbone, |value| f16::from_f32(value).to_f32());
    let drawn = "projector and predictor are drawn from seed 0: the file has none";
    let classifier = "the classifier is left out: fc.bias, fc.weight";
    for (name, state, heads, notes) in [
        ("expected.safetensors", &whole, Heads::Imported, vec![]),
        (
            "simsiam.pth.tar",
            &whole,
            Heads::Imported,
            vec!["module.encoder.fc.3.bias is subtracted from encoder.fc.4.running_mean"],
        ),
        ("torchvision.pth", &backbone, Heads::Random, vec![classifier, drawn]),
        ("torchvision-legacy.pth", &backbone, Heads::Random, vec![classifier, drawn]),
        ("payload.pth", &backbone, Heads::Random, vec![classifier, drawn]),
        (
            "torchvision-f16.pth",
            &rounded,
            Heads::Random,
            vec!["60 tensors of f16 are converted to f32", classifier, drawn],
        ),
    ] {
        let found = imported(&fixture(name), &[]);
        assert!(found.state == *state, "{name}");
        assert_eq!(found.notes, notes, "{name}");
        let blake3 = blake3::hash(&fs::read(fixture(name)).unwrap()).to_string();
        assert_eq!((found.start.blake3, found.start.heads), (Some(blake3), Some(heads)), "{name}");
    }
    assert!(!Path::new("payload-was-executed").exists());
}

/// The same tensors under the names that solo-learn and lightly give them, which say nothing else.
#[test]
fn names_of_other_libraries_give_the_same_network() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    let solo_learn = |name: &str| match name.strip_prefix("encoder.fc.") {
        Some(rest) => format!("projector.{rest}"),
        None => name.replace("encoder.", "backbone."),
    };
    let children =
        [("conv1", "0"), ("bn1", "1"), ("layer1", "4"), ("layer2", "5"), ("layer3", "6"), ("layer4", "7")];
    let lightly = |name: &str| {
        let name = name
            .replace("encoder.fc.", "projection_head.layers.")
            .replace("predictor.", "prediction_head.layers.");
        let of_child = |(child, place): &(&str, &str)| {
            Some(format!("backbone.{place}.{}", name.strip_prefix(&format!("encoder.{child}."))?))
        };
        children.iter().find_map(of_child).unwrap_or(name)
    };
    let children_alone = |name: &str| lightly(name).replace("backbone.", "");
    for (rename, more, heads) in [
        (&solo_learn as &dyn Fn(&str) -> String, &["classifier.weight"][..], Heads::Imported),
        (&lightly, &[], Heads::Imported),
        (&|name| format!("module.{}", lightly(name)), &[], Heads::Imported),
        (&solo_learn, &["momentum_backbone.conv1.weight", "queue"], Heads::Random),
        (&children_alone, &[], Heads::Random),
    ] {
        let is_taken = |name: &str| heads == Heads::Imported || is_backbone(name);
        fs::write(&file, renamed(|name| is_taken(name).then(|| rename(name)), more)).unwrap();
        let found = import(&recipe(&[]), &Start { heads: Some(heads), ..start(&file) }).unwrap();
        assert!(
            found.state == expected(is_taken, |value| value),
            "{more:?} {:?}",
            rename("encoder.conv1.weight")
        );
    }
    // What no recipe has a place for is refused, and how to leave it out is said.
    fs::write(&file, renamed(|name| Some(solo_learn(name)), &["queue"])).unwrap();
    let refused = error(&file, &[]);
    assert!(refused.contains("queue not to be there") && refused.contains("start.heads"), "{refused}");
    fs::write(&file, renamed(|name| Some(format!("trunk.{name}")), &[])).unwrap();
    let refused = error(&file, &[]);
    assert!(refused.contains("whose names are torchvision's") && !refused.contains("model."), "{refused}");
}

/// The fixture's weights under other names, but for those that get none, and one number under each name of `more`.
fn renamed(rename: impl Fn(&str) -> Option<String>, more: &[&str]) -> Vec<u8> {
    let bytes = fs::read(fixture("expected.safetensors")).unwrap();
    let original = SafeTensors::deserialize(&bytes).unwrap();
    let ours = original.tensors().into_iter().filter_map(|(name, tensor)| Some((rename(&name)?, tensor)));
    let number = TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap();
    let more = more.iter().map(|name| ((*name).to_owned(), number.clone()));
    safetensors::serialize(ours.chain(more), None).unwrap()
}

#[test]
fn what_was_exported_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for changes in [
        &["seed=5"][..],
        &["seed=5", "model.backbone=resnet18", "model.stem=imagenet"],
        &["seed=5", "model.backbone=resnet34", "model.stem=small"],
        &["seed=5", "model.backbone=resnet50", "model.projector_layers=3"],
    ] {
        let original = Encoder::random(&recipe(changes));
        let is_equal = |entries: &[simsiam::Entry], found: &[f32], expected: &[f32], heads: bool| {
            entries
                .iter()
                .filter(|entry| heads || is_backbone(&entry.name))
                .all(|entry| found[entry.range.clone()] == expected[entry.range.clone()])
        };
        for (names, heads) in [(Names::Simsiam, true), (Names::Torchvision, false)] {
            let file = folder.path().join("weights.safetensors");
            export(&original, names, &file).unwrap();
            // Of another seed, so that nothing is equal by itself.
            let changes = [changes, &["seed=6"]].concat();
            let found = imported(&file, &changes).state;
            let (layout, expected) = (original.layout(), original.state());
            assert!(is_equal(&layout.parameters, &found.weights, &expected.weights, heads), "{changes:?}");
            assert!(
                is_equal(&layout.statistics, &found.statistics, &expected.statistics, heads),
                "{changes:?}"
            );
            assert!(heads == (found == *expected), "{changes:?}: only the file's tensors are taken");
        }
    }
}

/// As the official code makes it on a ResNet-18: as wide as the features within, and wider at the end.
#[test]
fn a_projector_of_two_widths_is_refused_with_the_way_that_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    let layers = [("encoder.fc.0.weight", 7), ("encoder.fc.3.weight", 9)].map(|(name, width)| {
        (name, TensorView::new(Dtype::F32, vec![width, 7], &[0; 9 * 7 * 4][..width * 7 * 4]).unwrap())
    });
    let bytes = renamed(|name| is_backbone(name).then(|| name.to_owned()), &[]);
    let backbone = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let all = backbone.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).chain(layers);
    fs::write(&file, safetensors::serialize(all, None).unwrap()).unwrap();
    let refused = error(&file, &[]);
    for phrase in ["encoder.fc.0.weight", "wider at one layer", "--backbone-only", "beside start.weights"] {
        assert!(refused.contains(phrase) && !refused.contains("model.projector_dim"), "{refused}");
    }
}

#[test]
fn another_network_is_refused_with_its_first_difference() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    for (ours, theirs, phrases) in [
        (
            &[][..],
            &["model.width=4"][..],
            [
                "encoder.conv1.weight of shape [2, 3, 3, 3], found [4, 3, 3, 3]",
                "a resnet10, width 4, stem small or",
            ],
        ),
        (
            &[],
            &["model.stem=imagenet"],
            [
                "encoder.conv1.weight of shape [2, 3, 3, 3], found [2, 3, 7, 7]",
                "a resnet10, width 2, stem imagenet",
            ],
        ),
        (
            &["model.backbone=resnet34"],
            &["model.backbone=resnet18"],
            [
                "encoder.layer1.2.conv1.weight of shape [2, 2, 3, 3], found no such tensor",
                "a resnet18, width 2",
            ],
        ),
        // All that a ResNet-18 asks for is there.
        (
            &["model.backbone=resnet18"],
            &["model.backbone=resnet34"],
            ["encoder.layer1.2.bn1.bias not to be there, found [2]", "a resnet34, width 2"],
        ),
        (
            &["model.backbone=resnet34"],
            &["model.backbone=resnet50"],
            [
                "encoder.layer1.0.conv1.weight of shape [2, 2, 3, 3], found [2, 2, 1, 1]",
                "a resnet50, width 2",
            ],
        ),
        (
            &["model.projector_dim=8"],
            &[],
            [
                "encoder.fc.0.weight of shape [8, 16], found [6, 16]",
                "--backbone-only`, or start.heads=random beside",
            ],
        ),
        (
            &["model.projector_layers=3"],
            &[],
            ["encoder.fc.4.weight of shape [6], found no such tensor", "start.heads=random"],
        ),
        (&["model.projector_layers=2"], &["model.projector_layers=3"], ["encoder.fc.", "not to be there"]),
    ] {
        export(&Encoder::random(&recipe(theirs)), Names::Simsiam, &file).unwrap();
        let error = error(&file, ours);
        for phrase in phrases {
            assert!(error.contains(phrase), "{ours:?} {theirs:?}: {error:?} lacks {phrase:?}");
        }
    }
}

/// These stems have the same weights, and pictures no tensor: only the metadata of an export tells them apart.
#[test]
fn what_no_tensor_tells_is_read_from_an_exports_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    for names in [Names::Simsiam, Names::Torchvision] {
        export(&Encoder::random(&recipe(&["model.stem=small"])), names, &file).unwrap();
        let error = error(&file, &["model.stem=small-pool"]);
        let expected = "expected model.stem \"small-pool\", found \"small\" in the file's metadata";
        assert!(error.contains(expected), "{error}");
        for (change, expected) in [
            ("seed=6", 0),
            ("views.mean=[0.1, 0.2, 0.3]", 1),
            ("views.std=[0.1, 0.2, 0.3]", 1),
            ("views.crop_px=24", 0),
        ] {
            let notes = imported(&file, &["model.stem=small", change]).notes;
            let told = notes.iter().filter(|note| note.contains("normalised"));
            assert_eq!(told.count(), expected, "{change}: {notes:?}");
        }
    }
}

/// Whoever else writes `model` and `mean` there means something else.
#[test]
fn the_metadata_of_others_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    let bytes = fs::read(fixture("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    for [model, mean] in [["resnet18", "0.5"], ["{\"name\": 3}", "[1, 2]"], ["[]", ""]] {
        let metadata = [("model", model), ("mean", mean), ("std", "[1, 1, 1]")];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        fs::write(&file, safetensors::serialize(tensors.clone(), Some(metadata)).unwrap()).unwrap();
        assert_eq!(imported(&file, &[]).notes, Vec::<String>::new(), "{model} {mean}");
    }
}

#[test]
fn heads_come_from_where_the_recipe_says() {
    let with_heads =
        |heads, name| import(&recipe(&[]), &Start { heads: Some(heads), ..start(&fixture(name)) });
    let backbone = expected(is_backbone, |value| value);
    let random = with_heads(Heads::Random, "simsiam.pth.tar").unwrap();
    assert!(random.state == backbone);
    assert!(random.notes[0].contains("as start.heads says"), "{:?}", random.notes);
    let error = with_heads(Heads::Imported, "torchvision.pth").unwrap_err().to_string();
    assert!(error.contains("encoder.fc.0.weight") && error.contains("found no such tensor"), "{error}");
}

#[test]
fn a_file_that_cannot_be_used_gets_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    for (content, phrase) in [
        (None, "found no such file"),
        (Some(Vec::new()), "not a PyTorch checkpoint"),
        (Some(b"no weights".to_vec()), "not a PyTorch checkpoint"),
        (Some(part(&fixture("torchvision.pth"), 0.5)), "cannot be read"),
        (Some(part(&fixture("torchvision-legacy.pth"), 0.9)), "cannot be read"),
        (Some(part(&fixture("expected.safetensors"), 0.9)), "a damaged one"),
        (
            Some(tensors(&[("model.embeddings", Dtype::F32, &[0u8; 4][..])])),
            "among 1 tensors such as model.embeddings",
        ),
        (Some(tensors(&[])), "among 0 tensors"),
    ] {
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let error = error(&path, &[]);
        assert!(error.contains("weights: expected") && error.contains(phrase), "{error:?} lacks {phrase:?}");
    }
    assert!(error(folder.path(), &[]).contains("no plain file"));
    let other = Start { blake3: Some("0".repeat(64)), ..start(&fixture("torchvision.pth")) };
    let error = import(&recipe(&[]), &other).unwrap_err().to_string();
    assert!(error.contains("expected BLAKE3 0000") && error.contains("bring that one back"), "{error}");
}

fn part(path: &Path, share: f64) -> Vec<u8> {
    let mut content = fs::read(path).unwrap();
    content.truncate((content.len() as f64 * share) as usize);
    content
}

fn tensors(tensors: &[(&str, Dtype, &[u8])]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, bytes)| {
        (*name, TensorView::new(*dtype, vec![bytes.len() * 8 / dtype.bitsize()], bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// The fixture's weights with every number through `convert`.
fn converted(dtype: Dtype, convert: impl Fn(f32) -> Vec<u8>) -> Vec<u8> {
    let bytes = fs::read(fixture("expected.safetensors")).unwrap();
    let original = SafeTensors::deserialize(&bytes).unwrap();
    let all: Vec<(String, Vec<usize>, Vec<u8>)> = original
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let numbers = tensor.data().as_chunks::<4>().0.iter();
            let numbers = numbers.flat_map(|bytes| convert(f32::from_le_bytes(*bytes)));
            (name, tensor.shape().to_vec(), numbers.collect())
        })
        .collect();
    let view = |(name, shape, bytes)| (name, TensorView::new(dtype, shape, bytes).unwrap());
    safetensors::serialize(all.iter().map(|(name, shape, bytes)| view((name, shape.clone(), bytes))), None)
        .unwrap()
}

#[test]
fn other_numbers_are_converted_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let round = |value| bf16::from_f32(value).to_f32();
    fs::write(&path, converted(Dtype::BF16, |value| bf16::from_f32(value).to_le_bytes().to_vec())).unwrap();
    assert!(imported(&path, &[]).state == expected(|_| true, round));
    fs::write(&path, converted(Dtype::F64, |value| f64::from(value).to_le_bytes().to_vec())).unwrap();
    let found = imported(&path, &[]);
    assert!(found.state == expected(|_| true, |value| value));
    assert!(found.notes[0].ends_with("tensors of f64 are converted to f32"), "{:?}", found.notes);

    fs::write(&path, converted(Dtype::I32, |_| vec![0; 4])).unwrap();
    assert!(error(&path, &[]).contains("found numbers that are no floats"));
    fs::write(&path, converted(Dtype::F64, |_| 1e300f64.to_le_bytes().to_vec())).unwrap();
    assert!(error(&path, &[]).contains("finite numbers in encoder.conv1.weight, found inf"));
}

proptest! {
    /// Whatever the bytes, the answer is weights or a sentence.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), start in 0usize..5) {
        let starts: [&[u8]; 5] = [b"", b"\x80\x02", b"PK\x03\x04", b"\x10\0\0\0\0\0\0\0{", b"(dp0\n"];
        try_import(&[starts[start], &bytes].concat());
    }

    /// Files that are almost whole.
    #[test]
    fn damaged_files_never_panic(
        name in prop::sample::select(vec!["expected.safetensors", "simsiam.pth.tar", "torchvision-legacy.pth"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        near_start in any::<bool>(),
    ) {
        let mut content = fs::read(fixture(name)).unwrap();
        let range = if near_start { content.len() / 4 } else { content.len() };
        for (place, byte) in changes {
            content[place.index(range)] = byte;
        }
        try_import(&content);
    }
}

fn try_import(content: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    fs::write(&path, content).unwrap();
    if let Err(error) = import(&recipe(&[]), &start(&path)) {
        assert!(error.to_string().contains("expected"), "{error}");
    }
}
