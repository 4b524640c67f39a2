//! `batches`: the rows that a run's steps learn from, as files.

use std::process::Command;

use flamingo_model::Tensors;

use crate::world::{FLAMINGO, Finished, World, metrics};

#[test]
fn the_batches_of_a_step_are_those_that_the_run_learned_from() {
    let world = World::with_towers();
    world.train("flamingo", FLAMINGO, "run", &["--stop-after", "3"]).expect_success();
    let (run, out) = (world.path("run"), world.path("batches"));
    let written = |first: &str, steps: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo-train"));
        command.arg("batches").arg("--config").arg(run.join("config.toml"));
        command.arg("--root").arg(world.path("")).arg("--out").arg(&out);
        command.arg("--tokenizer").arg(run.join("tokenizer.json"));
        Finished(command.args(["--first", first, "--steps", steps]).output().unwrap())
    };
    written("2", "2").expect_success();
    for step in [2, 3] {
        let file = Tensors::read(&out.join(format!("step-{step}.safetensors"))).unwrap();
        let sum = |part: &str| {
            let of = |name: &&str| file.get(&format!("{name}.{part}")).unwrap().to_vec();
            ["pages", "pairs", "clips"].iter().flat_map(of).sum::<f32>()
        };
        let line = &metrics(&run)[step - 1];
        let logged = |key: &str| line[key].as_f64().unwrap() as f32;
        assert_eq!((sum("loss_mask"), sum("image_count")), (logged("tokens"), logged("images")));
        assert_eq!(file.shape("pages.phi").unwrap(), [2, 48]);
        assert_eq!(file.shape("clips.pixels").unwrap(), [1, 1, 2, 3, 16, 16]);
        assert_eq!(file.shape("pairs.rows").unwrap(), [3, 2]);
    }
    let pixels = |step: u64| {
        let file = Tensors::read(&out.join(format!("step-{step}.safetensors"))).unwrap();
        file.get("pages.pixels").unwrap().to_vec()
    };
    assert_ne!(pixels(2), pixels(3));

    let again = written("1", "1");
    assert_eq!(again.code(), Some(1));
    assert!(again.stderr().contains("batches"), "{}", again.stderr());
}
