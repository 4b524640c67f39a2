//! What the evaluation asks of the model: the image matters, closed gates hide it, and ranking
//! agrees with reading.

use crate::world::World;
use flamingo_eval::annotations::Annotations;
use flamingo_eval::prompt::{ImagePlace, Prompt, Template};
use flamingo_eval::subject::{LoadedModel, Reading, Subject, Taught};
use flamingo_model::Device;

struct Scene {
    /// Keeps the files.
    _world: World,
    model: LoadedModel,
    annotations: Annotations,
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
        let annotations = Annotations::open(world.path("caption").to_str().unwrap()).unwrap();
        Self { _world: world, model, annotations }
    }

    fn subject(&self) -> Subject<'_> {
        Subject::new(&self.model, &self.annotations)
    }
}

fn template() -> Template {
    Template { prompt: "shows:".into() }
}

/// A caption under each of some images.
fn taught(subject: &Subject<'_>, images: &[Option<usize>]) -> Vec<Taught> {
    let taught = images.iter().map(|image| Taught {
        prompt: Prompt::encode(
            &template().query(image.map(ImagePlace::Query)),
            subject.tokenizer(),
        ),
        answer: template().answer_tokens("a red square", subject.tokenizer()),
    });
    taught.collect()
}

#[test]
fn the_image_matters_and_each_is_looked_at_alike() {
    let scene = Scene::new();
    let subject = scene.subject();
    let totals = |images: &[Option<usize>]| -> Vec<f64> {
        let readings = subject.read(&taught(&subject, images)).unwrap();
        readings.iter().map(Reading::total).collect()
    };
    let [first, other, none, again] = totals(&[Some(0), Some(1), None, Some(0)])[..] else {
        panic!("four sequences were read")
    };
    assert!((first - other).abs() > 1e-3, "{first} {other}");
    assert!((first - none).abs() > 1e-3, "{first} {none}");
    assert_eq!(first.to_bits(), again.to_bits());
    // Queries 3 and 4 share their image.
    let shared = totals(&[Some(3), Some(4)]);
    assert_eq!(shared[0].to_bits(), shared[1].to_bits());
}

#[test]
fn closed_gates_hide_the_image() {
    let (open, closed) = (Scene::new(), Scene::with_closed_gates());
    let (open, closed) = (open.subject(), closed.subject());
    let taught = taught(&open, &[Some(0), Some(1)]);
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
    let taught = taught(&subject, &[Some(0), Some(1)]);
    let prompts: Vec<Prompt> = taught.iter().map(|taught| taught.prompt.clone()).collect();
    let answers =
        vec![taught[0].answer.clone(), template().answer_tokens("a star", subject.tokenizer())];
    let table = subject.log_likelihoods(&prompts, &answers).unwrap();
    let read = subject.read(&taught).unwrap();
    for (row, reading) in table.iter().zip(&read) {
        assert!((row[0] + reading.total()).abs() < 1e-3, "{row:?} {}", reading.total());
        assert!(row[1] > row[0], "the shorter answer is likelier here: {row:?}");
    }
}
