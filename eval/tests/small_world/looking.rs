//! What the evaluation asks of the model: the image matters, closed gates hide it, and ranking
//! agrees with reading.

use crate::world::World;
use flamingo_eval::benchmark::{Benchmark, SplitChoice};
use flamingo_eval::local_subject::{LoadedModel, LocalSubject, Reading, Taught};
use flamingo_eval::prompt::{ImagePlace, Piece, Prompt, Template};
use flamingo_eval::subject::{Asked, Subject};
use flamingo_eval::task_file::{Decoding, TaskFile};
use flamingo_model::Device;

struct Scene {
    /// Keeps the files.
    _world: World,
    model: LoadedModel,
    benchmark: Benchmark,
}

impl Scene {
    fn new() -> Self {
        Self::of(World::new())
    }

    /// The same model with all gates at 0.
    fn with_closed_gates() -> Self {
        let world = World::new();
        world.set_gates(0.0);
        Self::of(world)
    }

    fn of(world: World) -> Self {
        let model = LoadedModel::open(&world.path("run"), Device::cpu()).unwrap();
        let (task, folder) = (TaskFile::find("caption").unwrap(), world.path("caption"));
        let splits = SplitChoice::default();
        let benchmark = Benchmark::open(task, folder.to_str().unwrap(), &splits, 0).unwrap();
        Self { _world: world, model, benchmark }
    }

    fn subject(&self) -> LocalSubject<'_> {
        LocalSubject::new(&self.model, &self.benchmark)
    }

    fn pieces(&self, image: Option<usize>) -> Vec<Piece> {
        let item = &self.benchmark.query[0];
        template().query(item, image.map(ImagePlace::Query))
    }

    /// A caption under each of some images.
    fn taught(&self, images: &[Option<usize>]) -> Vec<Taught> {
        let subject = self.subject();
        let taught = images.iter().map(|image| Taught {
            prompt: Prompt::encode(&self.pieces(*image), subject.tokenizer()),
            answer: template().answer_tokens("a red square", subject.tokenizer()),
        });
        taught.collect()
    }
}

fn template() -> Template {
    Template::new("<image>shows:")
}

#[test]
fn the_image_matters_and_each_is_looked_at_alike() {
    let scene = Scene::new();
    let subject = scene.subject();
    let totals = |images: &[Option<usize>]| -> Vec<f64> {
        let readings = subject.read(&scene.taught(images)).unwrap();
        readings.iter().map(Reading::total).collect()
    };
    let [first, other, none, again] = totals(&[Some(0), Some(1), None, Some(0)])[..] else {
        panic!("four sequences were read")
    };
    assert!((first - other).abs() > 1e-3, "{first} {other}");
    assert!((first - none).abs() > 1e-3, "{first} {none}");
    assert_eq!(first.to_bits(), again.to_bits());
}

#[test]
fn closed_gates_hide_the_image() {
    let (open, closed) = (Scene::new(), Scene::with_closed_gates());
    let taught = open.taught(&[Some(0), Some(1)]);
    let (open, closed) = (open.subject(), closed.subject());
    let without = open.nll_with_closed_gates(&taught).unwrap();
    let readings = closed.read(&taught).unwrap();
    assert_eq!(readings[0], readings[1]);
    for ((without, reading), seeing) in
        without.iter().zip(&readings).zip(open.read(&taught).unwrap())
    {
        assert!((without - reading.total()).abs() < 1e-4, "{without} {}", reading.total());
        assert!((without - seeing.total()).abs() > 1e-3, "{without} {}", seeing.total());
    }
}

#[test]
fn ranking_agrees_with_reading_the_answer() {
    let scene = Scene::new();
    let subject = scene.subject();
    let taught = scene.taught(&[Some(0), Some(1)]);
    let answers: Vec<String> =
        ["a red square", "a star"].map(|it| template().continuation(it)).to_vec();
    let asked = [0, 1].map(|image| Asked {
        item: &scene.benchmark.query[0],
        pieces: scene.pieces(Some(image)),
        answers: answers.clone(),
        decoding: Decoding::ClosedSum,
    });
    let table = subject.rank(&asked, Decoding::ClosedSum).unwrap();
    let read = subject.read(&taught).unwrap();
    for (row, reading) in table.iter().map(|ranked| &ranked.scores).zip(&read) {
        assert!((row[0] + reading.total()).abs() < 1e-3, "{row:?} {}", reading.total());
        assert!(row[1] > row[0], "the shorter answer is likelier here: {row:?}");
    }
}
