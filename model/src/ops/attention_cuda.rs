//! Attention on a GPU: which rows see which, as tiles for the kernels of `attention.cu`, and their launches.

use std::ops::Range;
use std::sync::Arc;

use super::attention::{AttentionShape, Heads, Visible, scale_of};
use super::media_attention::MediaReads;
use super::sequences::Sequences;
use crate::cuda::{Arg, Array, CudaError, Gpu, Grid, Kind, kernel};
use crate::tensor::{DeviceError, Matrix, Record, record_on_gpu};

/// Queries that see the same keys: all of them, or those at or before each query, where the last query
/// sees the last key.
#[derive(Debug, Clone)]
struct Run {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Run {
    /// Keys that the first query sees; each further query sees one more, up to all.
    fn seen(&self, causal: bool) -> usize {
        let keys = self.keys.len();
        if causal { keys + 1 - self.queries.len() } else { keys }
    }
}

/// Rows somewhere in an array.
#[derive(Debug, Clone, Copy)]
struct Rows {
    /// Of the first value of the first head in the first row.
    address: u64,
    /// Values from row to row.
    stride: usize,
}

impl Rows {
    fn of(array: &Array, stride: usize, column: usize) -> Self {
        Self { address: array.at(column), stride }
    }
}

/// How the kernels of one head size are launched: the sizes that `attention.cu` gives them.
#[derive(Debug, Clone, Copy)]
struct Variant {
    /// Forward, backward for queries, backward for keys and values. A Hopper's second turns sums that the third
    /// makes into the gradient of queries.
    names: [&'static str; 3],
    hopper: bool,
    /// Queries of a tile.
    queries: usize,
    /// Keys of a tile of the gradient of keys.
    keys: usize,
    threads: [usize; 3],
    shared: [usize; 3],
}

impl Variant {
    fn of(gpu: &Gpu, size: usize, strides_fit: bool) -> Self {
        let kind = gpu.kind();
        let plain = Self::plain(kind);
        let chosen = Self::fastest(gpu, size, strides_fit, plain);
        // Of GPUs for graphics, a multiprocessor has less memory to share.
        if chosen.shared.iter().all(|bytes| *bytes <= gpu.shared_max()) { chosen } else { plain }
    }

    fn plain(kind: Kind) -> Self {
        Self {
            names: [
                kernel!("attention_forward", kind),
                kernel!("attention_backward_q", kind),
                kernel!("attention_backward_kv", kind),
            ],
            hopper: false,
            queries: 16,
            keys: 16,
            threads: [256; 3],
            shared: [0; 3],
        }
    }

    fn fastest(gpu: &Gpu, size: usize, strides_fit: bool, plain: Self) -> Self {
        let kind = gpu.kind();
        macro_rules! tensor_core {
            ($size:literal) => {
                Self::tensor_core(
                    size,
                    [
                        concat!("attention_forward_tc", $size, "\0"),
                        concat!("attention_backward_q_tc", $size, "\0"),
                        concat!("attention_backward_kv_tc", $size, "\0"),
                    ],
                )
            };
        }
        match size {
            64 if gpu.uses_wgmma() && strides_fit => Self::hopper(
                [
                    "attention_forward_wgmma64\0",
                    "attention_grad_q_wgmma64\0",
                    "attention_backward_wgmma64\0",
                ],
                [144_640, 0, 167_168],
            ),
            128 if gpu.uses_wgmma() && strides_fit => Self::hopper(
                [
                    "attention_forward_wgmma128\0",
                    "attention_grad_q_wgmma128\0",
                    "attention_backward_wgmma128\0",
                ],
                [197_888, 0, 166_144],
            ),
            32 if kind == Kind::Bf16 && strides_fit => tensor_core!("32"),
            64 if kind == Kind::Bf16 && strides_fit => tensor_core!("64"),
            80 if kind == Kind::Bf16 && strides_fit => tensor_core!("80"),
            96 if kind == Kind::Bf16 && strides_fit => tensor_core!("96"),
            128 if kind == Kind::Bf16 && strides_fit => tensor_core!("128"),
            _ => plain,
        }
    }

    /// As `attention_hopper.cu` has it.
    fn hopper(names: [&'static str; 3], shared: [usize; 3]) -> Self {
        Self { names, hopper: true, queries: 128, keys: 128, threads: [384, 256, 384], shared }
    }

    /// As `Plan` of `attention.cu` has it.
    fn tensor_core(size: usize, names: [&'static str; 3]) -> Self {
        const QUERIES: usize = 128;
        const STEP: usize = 64;
        let row = 2 * (size + 8);
        // Where queries stay in registers; where keys go by in whole steps.
        let held = size <= 80;
        let whole = size <= 96;
        Self {
            names,
            hopper: false,
            queries: QUERIES,
            keys: if size <= 64 { 128 } else { 64 },
            threads: [128; 3],
            shared: [
                row * (4 * STEP + if held { 0 } else { QUERIES }),
                row * (4 * if whole { STEP } else { STEP / 2 } + 2 * QUERIES),
                row * 4 * STEP + 2 * (2 * STEP * 4) + 4 * 32 + 16,
            ],
        }
    }
}

/// One attention, ready to be launched.
struct Attention {
    gpu: &'static Gpu,
    heads: Heads,
    variant: Variant,
    causal: bool,
    slopes: Option<Arc<Array>>,
    /// What the tables are made of.
    runs: Arc<Vec<Run>>,
    query_rows: usize,
    key_rows: usize,
    tiles: Arc<Array>,
}

impl Attention {
    fn new(
        gpu: &'static Gpu,
        heads: Heads,
        visible: &Visible,
        runs: Vec<Run>,
        (query_rows, key_rows): (usize, usize),
        strides: &[usize],
    ) -> Result<Self, CudaError> {
        let mut new = Self::bare(gpu, heads, visible, runs, (query_rows, key_rows), strides)?;
        let (queries, causal) = (new.variant.queries, new.causal);
        new.tiles = gpu
            .kept(key(0, queries, causal, &new.runs), || query_tiles(&new.runs, causal, queries))?;
        Ok(new)
    }

    /// One that is launched forward, and whose tables serve it alone.
    fn once(
        gpu: &'static Gpu,
        heads: Heads,
        visible: &Visible,
        runs: Vec<Run>,
        query_rows: usize,
        strides: &[usize],
    ) -> Result<Self, CudaError> {
        let mut new = Self::bare(gpu, heads, visible, runs, (query_rows, 0), strides)?;
        let tiles = query_tiles(&new.runs, new.causal, new.variant.queries);
        new.tiles = Arc::new(gpu.upload_i32(&tiles)?);
        Ok(new)
    }

    fn bare(
        gpu: &'static Gpu,
        heads: Heads,
        visible: &Visible,
        runs: Vec<Run>,
        (query_rows, key_rows): (usize, usize),
        strides: &[usize],
    ) -> Result<Self, CudaError> {
        let fit = strides.iter().all(|stride| stride.is_multiple_of(8));
        let variant = Variant::of(gpu, heads.size, fit);
        let causal = !matches!(visible, Visible::All);
        let slopes = match visible {
            Visible::CausalSloped(slopes) => Some(gpu.constant(slopes)?),
            Visible::All | Visible::Causal => None,
        };
        let (runs, tiles) = (Arc::new(runs), gpu.nothing());
        Ok(Self { gpu, heads, variant, causal, slopes, runs, query_rows, key_rows, tiles })
    }

    /// Whether every row of the queries sees something.
    fn covers_all(&self) -> bool {
        self.runs.iter().map(|run| run.queries.len()).sum::<usize>() == self.query_rows
    }

    /// Room for a result of which the kernels write the rows that see something.
    fn room(&self, n: usize) -> Result<Array, CudaError> {
        let kind = self.gpu.kind();
        if self.covers_all() { self.gpu.unset(n, kind) } else { self.gpu.zeroed(n, kind) }
    }

    fn scale(&self) -> f32 {
        scale_of(self.heads.query_width(), self.heads.queries)
    }

    /// Writes rows `[query_rows, heads * size]`; returns the log-sum-exp of each row's scores, by head.
    fn forward(&self, q: Rows, k: Rows, v: Rows, out: &Array) -> Result<Array, CudaError> {
        let Heads { queries, keys, size } = self.heads;
        let lse = self.gpu.unset(queries * self.query_rows, Kind::F32)?;
        let tiles = self.tiles.len() / TILE;
        // Blocks of a Hopper stay, and take one tile after the other.
        let hopper = self.variant.hopper;
        let blocks = if hopper {
            [self.gpu.multiprocessors().min(tiles * queries), 1]
        } else {
            [tiles, queries]
        };
        let grid =
            Grid { blocks, threads: self.variant.threads[0], shared: self.variant.shared[0] };
        let mut args = vec![
            Arg::Pointer(q.address),
            Arg::Pointer(k.address),
            Arg::Pointer(v.address),
            out.into(),
            (&lse).into(),
            (&self.tiles).into(),
            self.slopes.as_deref().into(),
            queries.into(),
            keys.into(),
            size.into(),
            q.stride.into(),
            k.stride.into(),
            self.heads.query_width().into(),
            self.query_rows.into(),
            self.scale().into(),
        ];
        let taken = hopper.then(|| self.gpu.zeroed(1, Kind::I32)).transpose()?;
        if let Some(taken) = &taken {
            args.extend([Arg::from(tiles), taken.into()]);
        }
        self.gpu.launch(self.variant.names[0], grid, &args)?;
        Ok(lse)
    }

    /// Writes the gradients of queries, keys and values; those of keys and values lie alike.
    fn backward(
        &self,
        [q, k, v]: [Rows; 3],
        [grad_out, out, lse]: [&Array; 3],
        [grad_q, grad_k, grad_v]: [Rows; 3],
    ) -> Result<(), CudaError> {
        let Heads { queries, keys, size } = self.heads;
        let (gpu, width) = (self.gpu, self.heads.query_width());
        let delta = gpu.unset(queries * self.query_rows, Kind::F32)?;
        let args = [
            grad_out.into(),
            out.into(),
            (&delta).into(),
            self.query_rows.into(),
            queries.into(),
            size.into(),
            width.into(),
            width.into(),
            self.query_rows.into(),
        ];
        let blocks = (self.query_rows * queries).div_ceil(8);
        gpu.launch(kernel!("attention_delta", gpu.kind()), Grid::of(blocks, 256), &args)?;
        let inputs = [
            Arg::Pointer(q.address),
            Arg::Pointer(k.address),
            Arg::Pointer(v.address),
            grad_out.into(),
            lse.into(),
            (&delta).into(),
        ];
        let sizes = [
            self.slopes.as_deref().into(),
            queries.into(),
            keys.into(),
            size.into(),
            q.stride.into(),
            k.stride.into(),
            width.into(),
        ];
        let ends = [self.query_rows.into(), self.scale().into()];

        // What a Hopper's kernel for keys adds up for queries.
        let n_sums = queries * self.query_rows * size;
        let sums = self.variant.hopper.then(|| gpu.zeroed(n_sums, Kind::F32)).transpose()?;
        let of_q = [Arg::Pointer(grad_q.address), (&self.tiles).into()];
        let args = [&inputs[..], &of_q, &sizes, &[grad_q.stride.into()], &ends].concat();
        let grid = |rows: usize, heads, i: usize| Grid {
            blocks: [rows, heads],
            threads: self.variant.threads[i],
            shared: self.variant.shared[i],
        };
        if sums.is_none() {
            gpu.launch(self.variant.names[1], grid(self.tiles.len() / TILE, queries, 1), &args)?;
        }

        let (rows, causal, at_once) = (self.key_rows, self.causal, self.variant.keys);
        let key = key(1, at_once, causal, &self.runs);
        let tables = |part| {
            let runs = Arc::clone(&self.runs);
            move || {
                let (tiles, spans) = key_tiles(&runs, causal, rows, at_once);
                if part == 0 { tiles } else { spans }
            }
        };
        let part = |part| [&key[..], &[rows, part]].concat();
        let tiles = gpu.kept(part(0), tables(0))?;
        let spans = gpu.kept(part(1), tables(1))?;
        let of_kv = [
            Arg::Pointer(grad_k.address),
            Arg::Pointer(grad_v.address),
            (&tiles).into(),
            (&spans).into(),
        ];
        let of_sums: Vec<Arg> = sums.iter().map(Arg::from).collect();
        let strides = [grad_k.stride.into()];
        let args = [&inputs[..], &of_sums, &of_kv, &sizes, &strides, &ends].concat();
        gpu.launch(self.variant.names[2], grid(tiles.len() / TILE, keys, 2), &args)?;
        let Some(sums) = sums else { return Ok(()) };
        let args = [
            (&sums).into(),
            Arg::Pointer(grad_q.address),
            self.query_rows.into(),
            queries.into(),
            size.into(),
            grad_q.stride.into(),
            self.query_rows.into(),
            self.scale().into(),
        ];
        let grid = grid((n_sums / 4).div_ceil(self.variant.threads[1]), 1, 1);
        gpu.launch(self.variant.names[1], grid, &args)
    }
}

/// Numbers that describe a tile.
const TILE: usize = 8;

/// What a table is kept under.
fn key(table: usize, at_once: usize, causal: bool, runs: &[Run]) -> Vec<usize> {
    let mut key = vec![table, at_once, usize::from(causal)];
    for Run { queries, keys } in runs {
        key.extend([queries.start, queries.end, keys.start, keys.end]);
    }
    key
}

/// Tiles of up to `at_once` queries, those with most keys first: blocks start in this order.
fn query_tiles(runs: &[Run], causal: bool, at_once: usize) -> Vec<i32> {
    let mut tiles = Vec::new();
    for run in runs {
        for first in run.queries.clone().step_by(at_once) {
            let n = at_once.min(run.queries.end - first);
            let seen = run.seen(causal) + (if causal { first - run.queries.start } else { 0 });
            let keys = run.keys.len().min(seen + n - 1);
            tiles.push([first, n, run.keys.start, keys, seen]);
        }
    }
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile[3]));
    padded(&tiles)
}

/// Tiles of up to `at_once` keys, none of them seen in part by a run of queries that all see it, and the
/// runs that see each.
fn key_tiles(runs: &[Run], causal: bool, rows: usize, at_once: usize) -> (Vec<i32>, Vec<i32>) {
    let mut cuts: Vec<usize> = runs.iter().flat_map(|run| [run.keys.start, run.keys.end]).collect();
    cuts.extend([0, rows]);
    cuts.sort_unstable();
    cuts.dedup();
    let (mut tiles, mut spans) = (Vec::new(), Vec::new());
    // Runs are looked through once for each piece between two cuts; each is in few.
    let mut by_start: Vec<&Run> = runs.iter().collect();
    by_start.sort_by_key(|run| (run.keys.start, run.queries.start));
    for piece in cuts.windows(2) {
        let all = by_start.partition_point(|run| run.keys.start <= piece[0]);
        let mut seeing: Vec<&&Run> =
            by_start[..all].iter().filter(|run| run.keys.end >= piece[1]).collect();
        seeing.sort_by_key(|run| run.queries.start);
        for first in (piece[0]..piece[1]).step_by(at_once) {
            let n = at_once.min(piece[1] - first);
            tiles.push([first, n, spans.len(), seeing.len(), 0]);
            for run in &seeing {
                let offset = first - run.keys.start;
                spans.push([run.queries.start, run.queries.len(), run.seen(causal), offset, 0]);
            }
        }
    }
    // Blocks start in this order: those with most to do first.
    tiles.sort_by_key(|tile| {
        let work = |span: &[usize; 5]| (span[1] + span[2]).saturating_sub(span[3]).min(span[1]);
        std::cmp::Reverse(spans[tile[2]..tile[2] + tile[3]].iter().map(work).sum::<usize>())
    });
    if spans.is_empty() {
        spans.push([0; 5]);
    }
    (padded(&tiles), padded(&spans))
}

fn padded(rows: &[[usize; 5]]) -> Vec<i32> {
    rows.iter()
        .flat_map(|row| {
            let mut tile = [0; TILE];
            tile.iter_mut().zip(row).for_each(|(t, v)| *t = *v as i32);
            tile
        })
        .collect()
}

/// See [`super::self_attention`].
pub(super) fn self_attention<T: Record>(
    qkv: Matrix<T>,
    sequences: &Sequences,
    heads: Heads,
    visible: &Visible,
) -> Result<Matrix<T>, DeviceError> {
    let (qkv, tape) = qkv.split();
    let input = Arc::clone(qkv.gpu_array());
    let (gpu, rows, stride) = (input.gpu(), qkv.rows(), qkv.width());
    let runs = sequences
        .iter()
        .filter(|rows| !rows.is_empty())
        .map(|rows| Run { queries: rows.clone(), keys: rows })
        .collect();
    let width = heads.query_width();
    let strides = [stride, width, heads.size];
    let core = Attention::new(gpu, heads, visible, runs, (rows, rows), &strides)?;
    let parts = [0, width, width + heads.key_width()];
    let [q, k, v] = parts.map(|column| Rows::of(&input, stride, column));
    let out = Arc::new(core.room(rows * width)?);
    let lse = core.forward(q, k, v, &out)?;
    let kept = Arc::clone(&out);
    record_on_gpu(out, width, tape, qkv.wants_gradient(), move |grad_out, store| {
        let grad = gpu.unset(input.len(), gpu.kind())?;
        let grads = parts.map(|column| Rows::of(&grad, stride, column));
        core.backward([q, k, v], [&grad_out, &kept, &lse], grads)?;
        qkv.give_array(store, grad)
    })
}

/// See [`super::attention`].
pub(super) fn attention<T: Record>(
    q: Matrix<T>,
    k: Matrix,
    v: Matrix,
    shape: AttentionShape,
    visible: &Visible,
) -> Result<Matrix<T>, DeviceError> {
    let runs = (0..q.rows() / shape.queries)
        .map(|b| Run {
            queries: b * shape.queries..(b + 1) * shape.queries,
            keys: b * shape.keys..(b + 1) * shape.keys,
        })
        .collect();
    across(q, k, v, shape.heads, visible, runs)
}

/// See [`super::media_attention`].
pub(super) fn media_attention<T: Record>(
    q: Matrix<T>,
    k: Matrix,
    v: Matrix,
    reads: &MediaReads,
    heads: usize,
) -> Result<Matrix<T>, DeviceError> {
    let run = |(rows, media): &(Range<usize>, Range<usize>)| Run {
        queries: rows.clone(),
        keys: media.clone(),
    };
    across(q, k, v, heads, &Visible::All, reads.runs().iter().map(run).collect())
}

/// Attention of `q` `[_, D]` to `k` and `v` `[_, D]`.
fn across<T: Record>(
    q: Matrix<T>,
    k: Matrix,
    v: Matrix,
    heads: usize,
    visible: &Visible,
    runs: Vec<Run>,
) -> Result<Matrix<T>, DeviceError> {
    let (q, tape) = q.split();
    let [of_q, of_k, of_v] = [&q, &k, &v].map(Matrix::gpu_array);
    let (gpu, width) = (of_q.gpu(), q.width());
    let heads = Heads { queries: heads, keys: heads, size: width / heads };
    let rows = (q.rows(), k.rows());
    let core = Attention::new(gpu, heads, visible, runs, rows, &[width, heads.size])?;
    let places = [of_q, of_k, of_v].map(|array| Rows::of(array, width, 0));
    let out = Arc::new(core.room(q.rows() * width)?);
    let lse = core.forward(places[0], places[1], places[2], &out)?;
    let kept = Arc::clone(&out);
    let wanted = q.wants_gradient() || k.wants_gradient() || v.wants_gradient();
    record_on_gpu(out, width, tape, wanted, move |grad_out, store| {
        let grad_q = core.room(q.rows() * width)?;
        let grad_k = gpu.unset(k.rows() * width, gpu.kind())?;
        let grad_v = gpu.unset(v.rows() * width, gpu.kind())?;
        let grads = [&grad_q, &grad_k, &grad_v].map(|grad| Rows::of(grad, width, 0));
        core.backward(places, [&grad_out, &kept, &lse], grads)?;
        q.give_array(store, grad_q)?;
        k.give_array(store, grad_k)?;
        v.give_array(store, grad_v)
    })
}

/// Keys and values so far, in room that grows. The room begins at a multiple of a row's bytes, so that rows of
/// several sequences have numbers in one count.
#[derive(Debug, Clone, Default)]
pub(super) struct DevicePast {
    room: Option<Arc<Array>>,
    /// Values before the first row.
    start: usize,
    /// Rows.
    n: usize,
}

impl DevicePast {
    /// Makes room of its own for `count` more rows of `width` values.
    fn reserve(&mut self, gpu: &'static Gpu, count: usize, width: usize) -> Result<(), CudaError> {
        const ROOM_MIN: usize = 64;
        let needed = (self.n + count) * width;
        let fits = self.room.as_ref().is_some_and(|room| self.start + needed <= room.len());
        // Rows that another sequence shares are copied before either adds to them.
        if fits && self.room.as_mut().is_some_and(|room| Arc::get_mut(room).is_some()) {
            return Ok(());
        }
        // A copy is made for a few rows; what is outgrown, for as many again.
        let more = if fits { ROOM_MIN * width } else { needed };
        let larger = gpu.unset((needed + more).max(ROOM_MIN * width) + width, gpu.kind())?;
        let start = width - larger.address() as usize / gpu.kind().size() % width;
        if let Some(room) = &self.room {
            gpu.put_part(&larger, start, &room.part(self.start, self.n * width))?;
        }
        (self.room, self.start) = (Some(Arc::new(larger)), start);
        Ok(())
    }

    /// Address of the first row.
    fn address(&self) -> u64 {
        self.room.as_ref().map_or(0, |room| room.at(self.start))
    }
}

/// See [`super::continue_attention`].
pub(super) fn continue_attention(
    qkv: &Matrix,
    pasts: &mut [&mut DevicePast],
    counts: &[usize],
    heads: Heads,
    visible: &Visible,
) -> Result<Matrix, DeviceError> {
    let new = qkv.gpu_array();
    let (gpu, stride, width) = (new.gpu(), qkv.width(), heads.query_width());
    let (key_width, row) = (heads.key_width(), 2 * heads.key_width());
    for (past, count) in pasts.iter_mut().zip(counts) {
        past.reserve(gpu, *count, row)?;
    }
    let base = pasts.iter().map(|past| past.address()).min().unwrap_or(0);
    let (mut first, mut runs, mut places) = (0, Vec::new(), Vec::new());
    for (past, count) in pasts.iter_mut().zip(counts) {
        let from = (past.address() - base) as usize / (row * gpu.kind().size());
        places.extend((from + past.n..from + past.n + count).map(|place| place as i32));
        past.n += count;
        runs.push(Run { queries: first..first + count, keys: from..from + past.n });
        first += count;
    }
    let places = gpu.upload_i32(&places)?;
    let args =
        [new.into(), (&places).into(), Arg::Pointer(base), stride.into(), width.into(), row.into()];
    gpu.launch(kernel!("put_columns", gpu.kind()), Grid::rows(first, row), &args)?;
    let strides = [stride, width, key_width, heads.size];
    let core = Attention::once(gpu, heads, visible, runs, first, &strides)?;
    let out = core.room(first * width)?;
    let of_value = (key_width * gpu.kind().size()) as u64;
    let [k, v] = [base, base + of_value].map(|address| Rows { address, stride: row });
    core.forward(Rows::of(new, stride, 0), k, v, &out)?;
    Ok(Matrix::on_gpu(Arc::new(out), width, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::ops::gradient_check::{devices, pseudo_random};
    use crate::ops::{attention, formula, media_attention, self_attention};

    /// The devices that operations are checked on, and a Hopper with kernels of its own: a real one, or with the
    /// emulator's feature and without a GPU the emulator.
    fn devices_and_hopper() -> Vec<Device> {
        let hopper = Gpu::hopper();
        #[cfg(feature = "cuda-emulator")]
        let hopper = hopper.or_else(|_| Ok::<_, ()>(Gpu::emulated_hopper()));
        devices().into_iter().chain(hopper.ok().map(Device::of)).collect()
    }

    /// Sizes of heads that have kernels of their own, and one that has not.
    const SIZES: [usize; 6] = [32, 64, 80, 96, 128, 40];

    #[test]
    fn every_size_of_heads_equals_the_formula() {
        let devices = devices_and_hopper();
        for size in SIZES {
            for (visible, length, heads) in [
                (Visible::All, 70, Heads { queries: 2, keys: 2, size }),
                (Visible::Causal, 150, Heads { queries: 2, keys: 1, size }),
                (Visible::sloped(2), 140, Heads { queries: 2, keys: 2, size }),
            ] {
                let qkv = (pseudo_random(2 * length * heads.row_width(), 1), heads.row_width());
                let sequences = Sequences::of([length, 0, 1, length - 1]);
                formula::Attention::of_itself(&sequences, heads, &visible).check(
                    &devices,
                    &[qkv],
                    |t, x, _| {
                        self_attention(x[0].clone().with(t), &sequences, heads, &visible).unwrap()
                    },
                    |t, x, _| {
                        self_attention(x[0].clone().with(t), &sequences, heads, &visible).unwrap()
                    },
                );
            }
        }
    }

    #[test]
    fn queries_of_another_sequence_and_of_media_equal_the_formula() {
        let shape = AttentionShape { queries: 20, keys: 90, heads: 2 };
        // Rows without images, an image that two runs see, and a run that sees two images.
        let images: Vec<Range<usize>> = (0..130)
            .map(|row| match row {
                0..10 => 0..0,
                60..90 => 1..3,
                90..110 => 3..3,
                _ => 0..1,
            })
            .collect();
        let seen: Vec<Range<usize>> =
            images.iter().map(|images| 24 * images.start..24 * images.end).collect();
        let reads = Arc::new(MediaReads::new(images.into_iter(), 24));
        let devices = devices_and_hopper();
        // The last is read in two parts.
        for size in [64, 40, 264] {
            let x = |rows: usize, seed| (pseudo_random(rows * 2 * size, seed), 2 * size);
            formula::Attention::of_another(3, shape, size).check(
                &devices,
                &[x(60, 1), x(270, 2), x(270, 3)],
                |t, x, _| {
                    let q = x[0].clone().with(t);
                    attention(q, x[1].clone(), x[2].clone(), shape, &Visible::All).unwrap()
                },
                |t, x, _| {
                    let q = x[0].clone().with(t);
                    attention(q, x[1].clone(), x[2].clone(), shape, &Visible::All).unwrap()
                },
            );
            formula::Attention::of_media(&seen, 2, size).check(
                &devices,
                &[x(130, 1), x(96, 2), x(96, 3)],
                |t, x, _| {
                    let q = x[0].clone().with(t);
                    media_attention(q, x[1].clone(), x[2].clone(), &reads, 2).unwrap()
                },
                |t, x, _| {
                    let q = x[0].clone().with(t);
                    media_attention(q, x[1].clone(), x[2].clone(), &reads, 2).unwrap()
                },
            );
        }
    }

    #[test]
    fn tiles_of_keys_lie_within_the_keys_of_every_run_that_sees_them() {
        let runs = [
            Run { queries: 0..5, keys: 0..3 },
            Run { queries: 5..9, keys: 3..9 },
            Run { queries: 9..12, keys: 0..9 },
        ];
        let (tiles, spans) = key_tiles(&runs, false, 12, 4);
        let mut seen = vec![0; 12];
        for tile in tiles.chunks(TILE) {
            for span in spans[tile[2] as usize * TILE..].chunks(TILE).take(tile[3] as usize) {
                let run = runs.iter().find(|run| run.queries.start == span[0] as usize).unwrap();
                assert_eq!(run.keys.start as i32 + span[3], tile[0]);
                assert!((tile[0] + tile[1]) as usize <= run.keys.end);
            }
            seen[tile[0] as usize..(tile[0] + tile[1]) as usize].fill(tile[3]);
        }
        assert_eq!(seen, [2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0]);
    }
}
