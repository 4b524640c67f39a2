//! `flamingo-train bench`: how fast a model of a name, with random weights, learns random data here, or
//! answers random prompts.
//!
//! Sizes, random data and counts of operations are those of `model/benches/torch_flamingo.py`, whose
//! lines of JSON have the same keys. A training step is all that a run does for one batch: features of
//! the pixels, loss, gradients, their norm, `AdamW`. [`flop`](crate::flop) says what operations are counted.

use std::path::PathBuf;
use std::time::Instant;

use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Args, ValueEnum};
use flamingo_model::{
    Device, Flamingo, FlamingoConfig, Generation, Gradients, Inputs, Latents, ModelError, Normal,
    Pixels, PixelsRef, Positions, Prompt, Recompute, Tower, Trainable, TrainedTowers,
};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::bench_memory::{Work, require_memory};
use crate::device::DeviceArgs;
use crate::error::TrainError;
use crate::flop::{self, Parts, StepRows};
use crate::limits::{BATCH_MAX, IMAGES_MAX, TOKENS_MAX};
use crate::optimizer::{AdamW, OptimizerConfig, Share};
use crate::room;
use crate::schedule::Decay;

/// What is timed, and how large it is.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("shape").required(true))]
pub struct Bench {
    /// Name of a model of the paper or of OpenFlamingo.
    #[arg(long, value_name = "NAME", group = "shape",
          value_parser = PossibleValuesParser::new(FlamingoConfig::preset_names()))]
    preset: Option<String>,
    /// Configuration of a model, such as the `config.json` of a checkpoint of the Flamingo stage.
    #[arg(long, value_name = "FILE", group = "shape")]
    model: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Sequences of a training step.
    #[arg(long, value_name = "B", default_value_t = 64, value_parser = up_to(BATCH_MAX))]
    batch: u64,
    /// Tokens of a sequence.
    #[arg(long, value_name = "L", default_value_t = 256, value_parser = up_to(TOKENS_MAX))]
    tokens: u64,
    /// Images of a sequence; each is seen by an equal part of the tokens.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = up_to(IMAGES_MAX))]
    images: u64,
    /// Rows of the language model's table that are trained, as OpenFlamingo's of its marks are.
    #[arg(long, value_name = "N", default_value_t = 2)]
    added_tokens: usize,
    /// Blocks that keep only their input for the backward pass.
    #[arg(long, value_enum, default_value_t = Blocks::Nothing)]
    recompute: Blocks,
    /// Writes so many tokens after prompts, the likeliest each, in place of training steps.
    #[arg(long, value_name = "N", value_parser = up_to(TOKENS_MAX))]
    write_tokens: Option<u64>,
    /// Scores a continuation of 10 tokens of each prompt, in place of training steps.
    #[arg(long)]
    score: bool,
    /// Times training steps as well, before --write-tokens and --score.
    #[arg(long)]
    step: bool,
    /// Prompts.
    #[arg(long, value_name = "P", default_value_t = 8, value_parser = up_to(BATCH_MAX))]
    prompts: u64,
    /// Images of a prompt before its last one.
    #[arg(long, value_name = "S", default_value_t = 32,
          value_parser = clap::value_parser!(u64).range(..IMAGES_MAX as u64))]
    shots: u64,
    /// Tokens of a prompt from each image on.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = up_to(TOKENS_MAX))]
    tokens_per_shot: u64,
    /// Timed runs.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = up_to(RUNS_MAX))]
    steps: u64,
    /// Runs before those that are timed.
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u64).range(..=RUNS_MAX as u64))]
    warm: u64,
    /// Seed of weights and data.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Operations that the device can do at most, in 10^12 a second, for the share of them that are done (MFU);
    /// 989 by default on an H100 or H200 in bf16.
    #[arg(long, value_name = "TFLOPS")]
    peak_tflops: Option<f64>,
    /// Times every kernel of one more training step on a GPU.
    #[arg(long)]
    profile: bool,
    /// Begins although the machine's memory does not suffice for weights, gradients and moments.
    #[arg(long)]
    force: bool,
    /// Prints a line of JSON for each thing that is timed, and what people read to standard error.
    #[arg(long)]
    json: bool,
}

/// At least 1, and at most what a config takes.
fn up_to(most: usize) -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=most as u64)
}

/// What a config calls `recompute`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Blocks {
    /// None: all activations are kept.
    Nothing,
    /// Frozen ones.
    Frozen,
    /// Frozen and trained ones.
    All,
}

/// Runs, timed or not.
const RUNS_MAX: usize = 1_000_000;
/// Tokens that `--score` scores.
const SCORED_TOKENS: usize = 10;
/// `tanh` of it is what gates let through: fresh ones let nothing, and products with zeros need less
/// power than those of a model that has learned.
const GATE: f32 = 0.5;
/// A learning rate of a run under way. Paper: 1e-4.
const LEARNING_RATE: f64 = 1e-4;

/// Times what the command line asks for; gives `say` each line of standard output.
///
/// # Errors
/// When the model cannot be built, or does not fit the sizes or the device.
pub fn run(bench: &Bench, mut say: impl FnMut(&str)) -> Result<(), TrainError> {
    let config = bench.config()?;
    let device = bench.device.open()?;
    if !bench.force {
        require_memory(&bench.name(), &config, bench.work(device), room::memory_bytes())?;
    }
    let clock = Instant::now();
    let model = fresh(&config, bench, device).map_err(TrainError::model("build"))?;
    let seconds = clock.elapsed().as_secs_f64();
    let mut job = Job { bench, device, parts: Parts::of(&config)?, model };
    let name = bench.name();
    eprintln!("{name}, {} parameters, {device}: made in {seconds:.1} s", job.parts.total());
    let mut tell = |figures: Figures| figures.tell(bench.json, &mut say);
    let ran = TrainError::model("run");
    let result = (|| {
        if bench.has_steps() {
            tell(job.train()?);
        }
        if let Some(n) = bench.write_tokens {
            tell(job.write(n as usize)?);
        }
        if bench.score {
            tell(job.score()?);
        }
        Ok(())
    })();
    result.map_err(ran)
}

impl Bench {
    fn config(&self) -> Result<FlamingoConfig, TrainError> {
        let mut config = match (&self.preset, &self.model) {
            (_, Some(path)) => {
                let text = std::fs::read_to_string(path).map_err(TrainError::file("read", path))?;
                serde_json::from_str(&text).map_err(|source| TrainError::Broken {
                    path: path.clone(),
                    expected: "the configuration of a Flamingo model",
                    source,
                })?
            }
            (name, None) => FlamingoConfig::preset(name.as_deref().unwrap_or_default())
                .map_err(TrainError::model("find"))?,
        };
        // The rows have their place in the table of a preset.
        let all = config.vocabulary();
        config.added_tokens = self.added_tokens.min(all.saturating_sub(1));
        config.language.vocabulary = all - config.added_tokens;
        Ok(config)
    }

    fn name(&self) -> String {
        let Self { preset, model, .. } = self;
        preset.clone().or_else(|| Some(model.as_ref()?.display().to_string())).unwrap_or_default()
    }

    /// Whether training steps are timed.
    fn has_steps(&self) -> bool {
        let has_prompts = self.write_tokens.is_some() || self.score;
        self.step || !has_prompts
    }

    /// What takes memory of it.
    fn work(&self, device: Device) -> Work {
        let prompts = self.prompts * (self.shots + 1);
        let has_prompts = self.write_tokens.is_some() || self.score;
        let of_prompts = if has_prompts { prompts } else { 0 };
        let of_steps = if self.has_steps() { self.batch * self.images } else { 0 };
        Work {
            learns_here: self.has_steps() && !device.is_gpu(),
            n_images: of_prompts.max(of_steps),
        }
    }

    /// Values of 256, as a loader sends them. Normal numbers would do as well; these are even, of mean 0 and
    /// deviation 1.
    fn noise(&self, n: usize) -> Pixels {
        let even = |i| (mix(self.seed, i) >> 56) as u8;
        let (factor, shift) = ([1.732 / 127.5; 3], [1.732; 3]);
        let values = (0..n as u64).into_par_iter().map(even).collect();
        Pixels::of_256(values, Vec::new(), Normal { factor, shift })
    }
}

/// `SplitMix64`'s output function on a counter.
fn mix(seed: u64, i: u64) -> u64 {
    let x = i.wrapping_add(seed << 40).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A model with random weights on its device, towers frozen, gates half open.
fn fresh(config: &FlamingoConfig, bench: &Bench, device: Device) -> Result<Flamingo, ModelError> {
    let tower = Tower { from: None, trained: false };
    let mut model = Flamingo::on_towers(config, tower, tower, bench.seed)?;
    model.set_recompute(match bench.recompute {
        Blocks::Nothing => Recompute::Nothing,
        Blocks::Frozen => Recompute::Frozen,
        Blocks::All => Recompute::All,
    });
    for params in model.params_mut() {
        params.update(&mut Gradients::default(), |name, _, values, _| {
            if name.ends_with("_gate") {
                values.fill(GATE);
            }
        })?;
    }
    device.place(&mut model)?;
    Ok(model)
}

/// A model that is timed.
struct Job<'a> {
    bench: &'a Bench,
    device: Device,
    parts: Parts,
    model: Flamingo,
}

/// Seconds of each timed run, and most bytes of the device's memory in use at one time.
struct Timed {
    /// Sorted.
    seconds: Vec<f64>,
    peak_bytes: Option<u64>,
}

impl Timed {
    fn median(&self) -> f64 {
        let n = self.seconds.len();
        f64::midpoint(self.seconds[(n - 1) / 2], self.seconds[n / 2])
    }

    fn best(&self) -> f64 {
        self.seconds[0]
    }

    fn worst(&self) -> f64 {
        self.seconds[self.seconds.len() - 1]
    }
}

/// Runs `work` untimed and timed, the device idle before and after each.
fn time(
    bench: &Bench,
    device: Device,
    mut work: impl FnMut(u64) -> Result<(), ModelError>,
) -> Result<Timed, ModelError> {
    let mut seconds = Vec::new();
    for run in 0..bench.warm + bench.steps {
        device.wait()?;
        if run == bench.warm {
            device.forget_peak()?;
        }
        let clock = Instant::now();
        work(run)?;
        device.wait()?;
        if run >= bench.warm {
            seconds.push(clock.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let peak_bytes = device.memory()?.map(|memory| memory.peak);
    Ok(Timed { seconds, peak_bytes })
}

impl Job<'_> {
    fn config(&self) -> &FlamingoConfig {
        self.model.config()
    }

    /// Sequences of `length` tokens, and the image that each token sees: the last one up to it.
    fn texts(&self, n: usize, length: usize, images: usize) -> (Vec<u32>, Vec<i32>, u32) {
        let (vocabulary, added) = (self.config().vocabulary(), self.config().added_tokens);
        let mark = (vocabulary - 1 - added.saturating_sub(2)) as u32;
        let words = (vocabulary - added.max(1)) as u64;
        let starts: Vec<usize> = (0..images).map(|image| image * length / images).collect();
        let token = |at: usize| {
            if starts.contains(&(at % length)) {
                return mark;
            }
            (mix(self.bench.seed ^ 0x5eed, at as u64) % words) as u32
        };
        let seen =
            |at: usize| starts.iter().filter(|start| **start <= at % length).count() as i32 - 1;
        let all = 0..n * length;
        (all.clone().map(token).collect(), all.map(seen).collect(), mark)
    }

    fn inputs(&self) -> Inputs {
        let Bench { batch, tokens, images, .. } = *self.bench;
        let (batch, length, images) = (batch as usize, tokens as usize, images as usize);
        let (tokens, phi, mark) = self.texts(batch, length, images);
        let is_learned = |at: usize| {
            let is_last = (at + 1).is_multiple_of(length);
            if is_last || tokens[at + 1] == mark { 0.0 } else { 1.0 }
        };
        let n_pixels = batch * images * self.config().vision.n_pixel_values();
        Inputs {
            loss_mask: (0..tokens.len()).map(is_learned).collect(),
            tokens,
            length,
            phi,
            pixels: self.bench.noise(n_pixels),
            features: None,
            n_frames: 1,
            image_count: vec![images; batch],
        }
    }

    /// Training steps.
    fn train(&mut self) -> Result<Figures, ModelError> {
        let inputs = self.inputs();
        let config = OptimizerConfig {
            lr: LEARNING_RATE,
            warmup_steps: 0,
            schedule: Decay::Constant,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip_norm: 1.0,
            groups: Vec::new(),
        };
        let mut adamw = AdamW::new(&config, Share::All);
        let mut last = (0.0, 0.0);
        let model = &mut self.model;
        let device = self.device;
        let used = || Ok::<_, ModelError>(device.memory()?.map_or(0, |memory| memory.used));
        let weights = used()?;
        let (mut moments, mut gradients_held) = (0, 0);
        let mut step = |run| {
            let (loss, mut gradients) = model.step(&inputs, 1.0, Gradients::default())?;
            gradients_held = used()? - weights - moments;
            let norms = adamw.norms(&model.params(), &mut gradients)?;
            let params = &mut model.params_mut();
            adamw.update(params, &mut gradients, &norms, LEARNING_RATE, run)?;
            last = (loss, norms.all);
            drop(gradients);
            moments = used()? - weights;
            Ok(())
        };
        let timed = time(self.bench, self.device, &mut step)?;
        let mut kernels = Vec::new();
        if self.bench.profile {
            self.device.start_timing();
            step(self.bench.warm + self.bench.steps)?;
            kernels = self.device.end_timing()?;
        }
        let Bench { batch, tokens, images, .. } = *self.bench;
        let n_tokens = (batch * tokens) as usize;
        // The last token of a sequence predicts nothing, and is not computed.
        let computed = n_tokens - batch as usize;
        let rows = StepRows { tokens: computed, images: (batch * images) as usize, frames: 1 };
        let parts = self.parts.flop(self.config(), TrainedTowers::default(), rows);
        let flop: f64 = parts.iter().map(|(_, flop)| flop).sum();
        let (tflops, per_second) = (flop / timed.median() / 1e12, 1.0 / timed.median());
        let mut figures = self.figures("step", &timed);
        figures.add(
            "batch",
            batch,
            format!("{batch} sequences of {tokens} tokens, {images} images"),
        );
        figures.put("tokens", tokens);
        figures.put("images", images);
        figures.put(
            "recompute",
            self.bench.recompute.to_possible_value().map(|v| v.get_name().to_owned()),
        );
        figures.put("checkpoint", self.bench.recompute != Blocks::Nothing);
        figures.rate("samples_per_second", "samples/s", batch as f64 * per_second);
        figures.rate("tokens_per_second", "tokens/s", n_tokens as f64 * per_second);
        figures.rate("tflops", "TFLOP/s", tflops);
        let peak = self.bench.peak_tflops.or_else(|| flop::peak_tflops(self.device));
        if let Some(peak) = peak {
            let mfu = tflops / peak;
            figures.add("mfu", mfu, format!("MFU {mfu:.4} of {peak} TFLOP/s"));
            figures.put("of_peak", mfu);
        }
        figures.put("flop", flop);
        let by_part = parts.map(|(part, flop)| (part.to_owned(), json!(flop)));
        figures.put("flop_parts", Map::from_iter(by_part));
        if let Some(peak) = timed.peak_bytes {
            let by_kind = [
                ("weights", weights),
                ("moments", moments),
                ("gradients after the backward pass", gradients_held),
                ("activations and gradients at the peak", peak.saturating_sub(weights + moments)),
            ];
            let gibibytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let text = by_kind.map(|(kind, bytes)| format!("{kind} {:.2}", gibibytes(bytes)));
            let by_kind = by_kind.map(|(kind, bytes)| (kind.to_owned(), json!(bytes)));
            let text = format!("memory in GiB: {}", text.join(", "));
            figures.add("memory_bytes", Map::from_iter(by_kind), text);
        }
        for (name, launches, seconds) in &kernels {
            figures.lines.push(format!("{:9.3} ms in {launches} of {name}", 1e3 * seconds));
        }
        if !kernels.is_empty() {
            figures.put("profile", json!(kernels));
        }
        figures.add("loss", last.0, format!("loss {:.4} at the last step", last.0));
        figures.add("gradient_norm", last.1, format!("gradient norm {:.4}", last.1));
        Ok(figures)
    }

    /// What images are to prompts, made of the pixels of all of them.
    fn look(&self, pixels: &Pixels) -> Result<Vec<Latents>, ModelError> {
        let of_prompt = (self.bench.shots + 1) as usize * self.config().vision.n_pixel_values();
        let all = PixelsRef::from(pixels).chunks(of_prompt).into_iter();
        all.map(|pixels| self.model.latents(pixels, 1)).collect()
    }

    /// Greedy tokens after prompts, images included.
    fn write(&self, n: usize) -> Result<Figures, ModelError> {
        // No token has this number: all prompts are written to the end.
        let generation = Generation::greedy(n, u32::MAX);
        let answer = |prompts: &[Prompt]| {
            let mut all = self.model.generate(prompts, &generation)?;
            Ok(json!(all.swap_remove(0)))
        };
        self.answer("generate", n, answer)
    }

    /// Log-probabilities of continuations of prompts, images included.
    fn score(&self) -> Result<Figures, ModelError> {
        let (continuations, ..) = self.texts(self.bench.prompts as usize, SCORED_TOKENS, 1);
        let answers: Vec<_> =
            continuations.chunks(SCORED_TOKENS).map(|answer| vec![answer.to_vec()]).collect();
        let answer = |prompts: &[Prompt]| {
            let each = prompts.iter().zip(&answers);
            let all = each.map(|(prompt, answers)| self.model.rank(prompt, answers));
            let all = all.collect::<Result<Vec<_>, _>>()?;
            Ok(json!(all[0][0]))
        };
        self.answer("score", SCORED_TOKENS, answer)
    }

    fn answer(
        &self,
        job: &'static str,
        n: usize,
        answer: impl Fn(&[Prompt]) -> Result<Value, ModelError>,
    ) -> Result<Figures, ModelError> {
        let Bench { prompts, shots, tokens_per_shot, .. } = *self.bench;
        let (images, length) = (shots + 1, ((shots + 1) * tokens_per_shot) as usize);
        let (tokens, phi, _) = self.texts(prompts as usize, length, images as usize);
        let n_pixels = prompts * images * self.config().vision.n_pixel_values() as u64;
        let pixels = self.bench.noise(n_pixels as usize);
        let mut first = Value::Null;
        let timed = time(self.bench, self.device, |_| {
            let texts = tokens.chunks(length).zip(phi.chunks(length));
            let all = texts.zip(self.look(&pixels)?).map(|((tokens, phi), latents)| Prompt {
                tokens: tokens.to_vec(),
                phi: phi.to_vec(),
                latents,
            });
            first = answer(&all.collect::<Vec<_>>())?;
            Ok(())
        })?;
        let looking = time(self.bench, self.device, |_| self.look(&pixels).map(drop))?.median();
        let per_second = prompts as f64 / timed.median();
        let mut figures = self.figures(job, &timed);
        let text =
            format!("{prompts} prompts of {images} images and {length} tokens, {n} tokens each");
        figures.add("prompts", prompts, text);
        figures.put("images", images);
        figures.put("prompt_tokens", length);
        figures.put("new_tokens", n);
        figures.add("images_seconds", looking, format!("images {looking:.4} s of it"));
        figures.rate("samples_per_second", "samples/s", per_second);
        figures.rate("tokens_per_second", "tokens/s", per_second * n as f64);
        figures.put("first", first);
        Ok(figures)
    }

    /// What there is to say of everything that is timed.
    fn figures(&self, job: &'static str, timed: &Timed) -> Figures {
        let mut figures = Figures { job, lines: Vec::new(), json: Map::new() };
        let (median, best, worst) = (timed.median(), timed.best(), timed.worst());
        figures.put("bench", job);
        figures.add("preset", self.bench.name(), self.bench.name());
        figures.add("device", self.device.to_string(), self.device.to_string());
        figures.put("dtype", self.device.precision().to_string());
        figures.put("alibi", self.config().language.architecture.positions == Positions::Alibi);
        let runs = timed.seconds.len();
        let text =
            format!("seconds {median:.4}, the median of {runs}, from {best:.4} to {worst:.4}");
        figures.add("seconds", median, text);
        figures.put("seconds_min", best);
        figures.put("seconds_max", worst);
        let gibibytes = timed.peak_bytes.map(|bytes| bytes as f64 / f64::from(1 << 30));
        let memory = gibibytes.map_or_else(|| "not known".to_owned(), |n| format!("{n:.2} GiB"));
        figures.add("peak_bytes", timed.peak_bytes, format!("peak memory of the device {memory}"));
        let Parts { vision, resampler, cross_attention, language, added_rows } = self.parts;
        let text = format!(
            "parameters: vision {vision}, resampler {resampler}, cross-attention {cross_attention}, \
             language {language}, added rows {added_rows}, trained {}, all {}",
            self.parts.trained(),
            self.parts.total()
        );
        figures.add("parameters", self.parts.json(), text);
        figures
    }
}

/// What came out of one measurement.
struct Figures {
    job: &'static str,
    lines: Vec<String>,
    json: Map<String, Value>,
}

impl Figures {
    /// A figure for programs alone.
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.json.insert(key.to_owned(), value.into());
    }

    /// A figure for programs, and for people in words.
    fn add(&mut self, key: &str, value: impl Into<Value>, text: String) {
        self.put(key, value);
        self.lines.push(text);
    }

    fn rate(&mut self, key: &str, unit: &str, value: f64) {
        let digits = if value < 100.0 { 2 } else { 0 };
        self.add(key, value, format!("{value:.digits$} {unit}"));
    }

    fn tell(self, json: bool, say: &mut impl FnMut(&str)) {
        for line in self.lines {
            let line = format!("{}: {line}", self.job);
            if json { eprintln!("{line}") } else { say(&line) }
        }
        if json {
            say(&Value::Object(self.json).to_string());
        }
    }
}
