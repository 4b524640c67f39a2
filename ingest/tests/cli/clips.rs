//! Clips against the ffmpeg command line, which decodes, times and colours frames on its own.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use flamingo_dataset::{Corpus, Row, VideoText};

use crate::program::{folder, real, run, succeed};

/// Ends of commands that make films: sources of pictures, filters and codecs.
const FILMS: &[(&str, &str)] = &[
    ("h264.mp4", "-f lavfi -i testsrc2=s=192x108:r=25:d=5 -pix_fmt yuv420p -c:v libx264"),
    (
        "open-gop.mkv",
        "-f lavfi -i testsrc2=s=192x108:r=25:d=5 -pix_fmt yuv420p -c:v libx264 -g 20 \
         -x264-params open-gop=1:bframes=4:b-pyramid=normal",
    ),
    ("cut.mp4", "-ss 1.3 -i h264.mp4 -c copy"),
    ("turned.mp4", "-i h264.mp4 -c copy -metadata:s:v rotate=90"),
    ("upside-down.mp4", "-i h264.mp4 -c copy -metadata:s:v rotate=180"),
    (
        "late.mp4",
        "-f lavfi -i sine=d=5 -itsoffset 0.73 -f lavfi -i testsrc2=s=192x108:r=25:d=4 -c:a aac \
         -pix_fmt yuv420p -c:v libx264",
    ),
    (
        "uneven.mkv",
        "-f lavfi -i testsrc2=s=192x108:r=25:d=5 -vf select='not(mod(n,7))+lt(mod(n,40),5)' \
         -vsync vfr -pix_fmt yuv420p -c:v libx264",
    ),
    ("ntsc.ts", "-f lavfi -i testsrc2=s=192x108:r=30000/1001:d=5 -pix_fmt yuv420p -c:v libx264"),
    (
        "ten-bit.mp4",
        "-f lavfi -i testsrc2=s=192x108:r=25:d=3 -vf scale=out_color_matrix=bt709 \
         -colorspace bt709 -pix_fmt yuv420p10le -c:v libx264",
    ),
    (
        "full-range.webm",
        "-f lavfi -i testsrc2=s=192x108:r=25:d=3 -vf scale=out_color_matrix=bt709:out_range=full \
         -color_range pc -colorspace bt709 -c:v libvpx-vp9 -deadline realtime -cpu-used 8",
    ),
    (
        "wide-pixels.mp4",
        "-f lavfi -i testsrc2=s=192x108:r=25:d=3 -vf setsar=4/3 -pix_fmt yuv420p -c:v libx264",
    ),
    (
        "odd.webm",
        "-f lavfi -i testsrc2=s=192x108:r=25:d=3 -vf crop=177:95:3:5 -b:v 1M -c:v libvpx \
         -deadline realtime",
    ),
    ("mpeg4.avi", "-f lavfi -i testsrc2=s=192x108:r=25:d=5 -c:v mpeg4 -bf 2 -q:v 3"),
    ("mpeg2.mpg", "-f lavfi -i testsrc2=s=192x108:r=25:d=5 -c:v mpeg2video -bf 2 -q:v 3"),
    ("wmv2.wmv", "-f lavfi -i testsrc2=s=192x108:r=25:d=3 -c:v wmv2 -q:v 3"),
    ("jpegs.mov", "-f lavfi -i testsrc2=s=192x108:r=25:d=3 -c:v mjpeg -q:v 3"),
    ("av1.mp4", "-f lavfi -i testsrc2=s=192x108:r=25:d=2 -c:v libaom-av1 -cpu-used 8 -g 20"),
];

/// Whether there is an ffmpeg command to compare with.
fn has_ffmpeg() -> bool {
    let found = Command::new("ffmpeg").arg("-version").output().is_ok();
    if !found {
        eprintln!("skipped: there is no ffmpeg command");
    }
    found
}

fn ffmpeg(folder: &str, arguments: &str) -> Result<Vec<u8>, String> {
    let mut command = Command::new("ffmpeg");
    let command = command.current_dir(folder).args(["-v", "error", "-y", "-threads", "2"]);
    let output = command.args(arguments.split_whitespace()).output().unwrap();
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn clips(out: &str) -> Vec<VideoText> {
    let corpus = Corpus::open(out).unwrap();
    let clip = |row| match row {
        Row::VideoText(clip) => clip,
        other => panic!("{other:?}"),
    };
    corpus.scan().map(|row| clip(row.unwrap())).collect()
}

/// The clips that a list with these lines gives.
fn listed(root: &str, plan: &str, lines: &[String]) -> (Vec<VideoText>, String) {
    fs::write(format!("{root}/plan.toml"), plan).unwrap();
    fs::write(format!("{root}/list.csv"), lines.join("\n")).unwrap();
    let out = format!("{root}/corpus");
    let _ = fs::remove_dir_all(&out);
    let (plan, list) = (format!("{root}/plan.toml"), format!("{root}/list.csv"));
    let text = succeed(&["video-text", "--plan", &plan, "--input", &list, "--out", &out]);
    succeed(&["check", &out]);
    (clips(&out), text)
}

/// Frames as the ffmpeg command shows them at each time, in the size of `clip`.
fn frames_of_ffmpeg(root: &str, file: &str, rate: f64, clip: &VideoText) -> Vec<Vec<u8>> {
    let (width, height) = (clip.width, clip.height);
    let filter = format!(
        "fps={rate}:round=up:start_time=0,scale={width}:{height}:flags=SCALE+accurate_rnd+full_chroma_int+full_chroma_inp"
    );
    // The same scaling: averages where a frame shrinks.
    let is_shrunk = width.max(height) == 512;
    let filter = filter.replace("SCALE", if is_shrunk { "area" } else { "bicubic" });
    let command = format!("-i {file} -an -vf {filter} -pix_fmt rgb24 -f rawvideo -");
    let raw = ffmpeg(root, &command).unwrap();
    raw.chunks_exact(3 * width as usize * height as usize).map(<[u8]>::to_vec).collect()
}

/// Peak signal to noise ratio of the brightness in decibels: a JPEG file halves its colours.
fn psnr(jpeg: &[u8], raw: &[u8]) -> f64 {
    let image = image::load_from_memory(jpeg).unwrap().to_rgb8();
    assert_eq!(image.as_raw().len(), raw.len());
    let brightness = |pixel: &[u8]| {
        0.299 * f64::from(pixel[0]) + 0.587 * f64::from(pixel[1]) + 0.114 * f64::from(pixel[2])
    };
    let pixels = image.as_raw().chunks_exact(3).zip(raw.chunks_exact(3));
    let squares = pixels.map(|(a, b)| (brightness(a) - brightness(b)).powi(2)).sum::<f64>();
    10.0 * (255.0 * 255.0 * (raw.len() / 3) as f64 / squares.max(1e-9)).log10()
}

fn compare(root: &str, files: &[String], rate: f64) {
    let plan = format!(
        "[video]\nframes_max = 64\nframes_per_second = {rate:?}\njpeg_quality = 98\nside_min = 1\n"
    );
    let rows = files.iter().map(|file| format!("{file},a clip"));
    let lines: Vec<_> = std::iter::once("file,caption".to_owned()).chain(rows).collect();
    let (found, text) = listed(root, &plan, &lines);
    assert_eq!(found.len(), files.len(), "{text}");
    for (clip, file) in found.iter().zip(files) {
        let expected = frames_of_ffmpeg(root, file, rate, clip);
        let expected = &expected[..expected.len().min(64)];
        assert_eq!(clip.frames.len(), expected.len(), "{file}: {:?}", clip.frame_ms);
        let ratios = clip.frames.iter().zip(expected).map(|(frame, raw)| psnr(&frame.bytes, raw));
        let worst = ratios.fold(f64::INFINITY, f64::min);
        println!("{file}: {} frames, {} {worst:.1} dB", clip.frames.len(), clip.codec);
        assert!(worst > 35.0, "{file} at {rate} per second: {worst} dB");
    }
}

#[test]
fn frames_are_those_of_the_ffmpeg_command() {
    if !has_ffmpeg() {
        return;
    }
    let (_folder, root) = folder();
    let mut files = Vec::new();
    for (name, command) in FILMS {
        match ffmpeg(&root, &format!("{command} {name}")) {
            Ok(_) => files.push((*name).to_owned()),
            Err(error) => println!("{name} cannot be made here: {error}"),
        }
    }
    assert!(files.len() > FILMS.len() / 2, "{files:?}");
    compare(&root, &files, 1.0);
    compare(&root, &files, 7.5);
}

#[test]
fn frames_of_real_films_are_those_of_the_ffmpeg_command() {
    let Some(films) = real("video") else { return };
    if !has_ffmpeg() {
        return;
    }
    let (_folder, root) = folder();
    let mut files = Vec::new();
    for part in ["mdn", "data-juicer"] {
        let mut found: Vec<PathBuf> =
            fs::read_dir(films.join(part)).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| path.extension().is_some_and(|e| e == "mp4" || e == "webm"));
        found.sort();
        for path in found {
            let name = format!("{part}-{}", path.file_name().unwrap().to_str().unwrap());
            fs::copy(&path, format!("{root}/{name}")).unwrap();
            files.push(name);
        }
    }
    compare(&root, &files, 1.0);
}

#[test]
fn a_part_far_inside_a_film_has_the_frames_of_the_whole() {
    if !has_ffmpeg() {
        return;
    }
    let (_folder, root) = folder();
    for (name, codec) in
        [("a.mp4", "libx264 -g 250"), ("a.ts", "libx264 -g 60"), ("a.mkv", "mpeg4")]
    {
        let film = "-f lavfi -i testsrc2=s=96x64:r=10:d=100 -pix_fmt yuv420p";
        ffmpeg(&root, &format!("{film} -c:v {codec} {name}")).unwrap();
        let plan = "[video]\njpeg_quality = 98\nframes_max = 3\n";
        let header = "file,caption,start,end".to_owned();
        let parts = [(0, 100), (50, 52), (87, 100), (99, 100)];
        let rows = parts.map(|(start, end)| format!("{name},a part,{start},0:01:{:02}", end - 60));
        let rows = rows.map(|row| row.replace("0:01:-8", "52"));
        let (found, text) = listed(&root, plan, &[&[header], &rows[..]].concat());
        assert_eq!(found.len(), parts.len(), "{text}");
        let whole = frames_of_ffmpeg(&root, name, 1.0, &found[0]);
        for (clip, (start, end)) in found.iter().zip(parts) {
            let n = (end - start).min(3) as usize;
            assert_eq!(
                (clip.start_ms, clip.frames.len()),
                (1000 * start, n),
                "{:?}",
                clip.frame_ms
            );
            for (i, frame) in clip.frames.iter().enumerate() {
                let ratio = psnr(&frame.bytes, &whole[start as usize + i]);
                assert!(ratio > 35.0, "{name} from {start}, frame {i}: {ratio} dB");
            }
        }
        // Eight frames of the whole, which is done by seeking.
        let plan = "[video]\njpeg_quality = 98\nframes_max = 5\nsampling = \"uniform\"\n";
        let (found, _) = listed(&root, plan, &["file,caption".into(), format!("{name},all")]);
        assert_eq!(found[0].frame_ms, [10_000, 30_000, 50_000, 70_000, 90_000], "{name}");
        for (i, frame) in found[0].frames.iter().enumerate() {
            let ratio = psnr(&frame.bytes, &whole[10 + 20 * i]);
            assert!(ratio > 35.0, "{name}, frame {i} of the whole: {ratio} dB");
        }
    }
}

#[test]
fn cuts_are_found_and_handled_as_the_plan_says() {
    if !has_ffmpeg() {
        return;
    }
    let (_folder, root) = folder();
    let shots = "-f lavfi -i color=red:s=96x64:r=10:d=2 -f lavfi -i testsrc=s=96x64:r=10:d=5 \
                 -f lavfi -i color=white:s=96x64:r=10:d=2 -filter_complex concat=n=3 -c:v mpeg4";
    ffmpeg(&root, &format!("{shots} cut.mp4")).unwrap();
    ffmpeg(&root, "-f lavfi -i testsrc=s=96x64:r=10:d=3 -c:v mpeg4 whole.mp4").unwrap();
    let lines: Vec<_> =
        ["file,caption", "cut.mp4,three shots", "whole.mp4,one shot"].map(str::to_owned).into();
    let spans = |handling: &str| {
        let (found, text) =
            listed(&root, &format!("[video]\nscene_cuts = \"{handling}\"\n"), &lines);
        let spans = found.iter().map(|clip| (clip.start_ms, clip.end_ms)).collect::<Vec<_>>();
        (spans, text)
    };
    assert_eq!(spans("ignore").0, [(0, 9000), (0, 3000)]);
    assert_eq!(spans("longest-shot").0, [(2000, 7000), (0, 3000)]);
    let (kept, text) = spans("drop");
    assert_eq!(kept, [(0, 3000)]);
    assert!(text.contains("rejected: 1 video/scene_cut"), "{text}");
}

#[test]
fn the_words_beside_a_film_become_clips() {
    let Some(mdn) = real("video/mdn") else { return };
    let (_folder, root) = folder();
    for name in ["friday.mp4", "friday.vtt"] {
        fs::copy(mdn.join(name), format!("{root}/{name}")).unwrap();
    }
    let plan = format!("{root}/plan.toml");
    fs::write(&plan, "[video]\ncues = \"clips\"\ncue_ms_min = 1400\n").unwrap();
    let make = |name: &str| {
        let out = format!("{root}/{name}");
        succeed(&["video-text", "--plan", &plan, "--input", &root, "--out", &out]);
        clips(&out)
    };
    let of = |clip: &VideoText| (clip.start_ms, clip.end_ms, clip.caption.clone());
    let found = make("cues");
    let expected = [
        (0, 1499, "Hildy! How are you?"),
        (1500, 2999, "Tell me, is the lord of the universe in?"),
        (3000, 4299, "Yes, he's in - in a bad humor Somebody must've stolen the crown jewels"),
    ];
    // The last two are joined, since the first of them is too short.
    let expected = expected
        .map(|(start, end, text)| (start, if start == 3000 { 6000 } else { end }, text.to_owned()));
    assert_eq!(found.iter().map(of).collect::<Vec<_>>(), expected);
    assert!(found[0].key.ends_with(":friday.mp4#00000"), "{}", found[0].key);

    // The same parts as video2dataset writes them.
    let parts = expected.each_ref().map(|(start, end, text)| {
        format!(
            r#"{{"start": {}, "end": {}, "caption": "{text}"}}"#,
            f64::from(*start) / 1e3,
            f64::from(*end) / 1e3
        )
    });
    let json = format!(r#"{{"url": "https://a.example/f", "clips": [{}]}}"#, parts.join(","));
    fs::write(format!("{root}/friday.json"), json).unwrap();
    let again = make("json");
    assert_eq!(again.iter().map(of).collect::<Vec<_>>(), expected);
    assert_eq!(again[0].url.as_deref(), Some("https://a.example/f"));
    for (one, other) in found.iter().zip(&again) {
        assert_eq!((&one.frames, &one.frame_ms), (&other.frames, &other.frame_ms));
    }

    // And a file that is none.
    fs::write(format!("{root}/friday.json"), "{").unwrap();
    let output = run(&["video-text", "--input", &root, "--out", &format!("{root}/none")]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("read/bad_sidecar") && errors.contains("friday.json"), "{errors}");
}

#[test]
fn a_decoder_without_time_or_memory_costs_one_clip() {
    if !has_ffmpeg() {
        return;
    }
    let (_folder, root) = folder();
    ffmpeg(&root, "-f lavfi -i color=red:s=96x64:r=10:d=1 -c:v mpeg4 small.mp4").unwrap();
    ffmpeg(&root, "-f lavfi -i color=red:s=1920x1080:r=10:d=4 -c:v mpeg4 long.mp4").unwrap();
    ffmpeg(&root, "-f lavfi -i color=red:s=7680x4320:r=1:d=1 -c:v mpeg4 large.mp4").unwrap();
    let check = |bad: &str, plan: &str, reason: &str| {
        let rows = ["file,caption", "small.mp4,a", bad, "small.mp4,c"].map(str::to_owned);
        let (found, text) = listed(&root, &format!("[video]\n{plan}\n"), &rows);
        println!("{plan:?}: {text}");
        let captions: Vec<_> = found.iter().map(|clip| clip.caption.as_str()).collect();
        assert_eq!(captions, ["a", "c"], "{text}");
        assert!(text.contains(&format!("rejected: 1 video/{reason}\n")), "{text}");
    };
    let many = "frames_per_second = 256.0\nframes_max = 1024\nstored_side_max = 0";
    check("long.mp4,b", &format!("{many}\ndecoder_cpu_seconds_max = 1"), "decoder_timeout");
    // Decoders do not always say that it was memory that they lacked.
    check("large.mp4,b", "decoder_bytes_max = 100000000", "bad_video");
    let rows = ["file,caption", "large.mp4,b"].map(str::to_owned);
    assert_eq!(listed(&root, "[video]\ndecoder_bytes_max = 600000000\n", &rows).0.len(), 1);
    // By the clock, which runs for the others, too, where the machine is busy.
    fs::write(format!("{root}/plan.toml"), format!("[video]\n{many}\ndecoder_seconds_max = 1\n"))
        .unwrap();
    fs::write(format!("{root}/list.csv"), "file,caption\nlong.mp4,b\n").unwrap();
    let (plan, list) = (format!("{root}/plan.toml"), format!("{root}/list.csv"));
    let out = format!("{root}/late");
    let output = run(&["video-text", "--plan", &plan, "--input", &list, "--out", &out]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("1 video/decoder_timeout"), "{errors}");
}

#[test]
fn every_broken_file_is_refused_in_little_memory_and_time() {
    let (_folder, root) = folder();
    let mut lines = vec!["file,caption".to_owned()];
    for part in ["bad", "formats"] {
        let Some(files) = real(part) else { return };
        copy_all(&files, &root, &mut lines);
    }
    // Half of what there may be in all, for decoding alone.
    let plan = "[video]\ndecoder_bytes_max = 134217728\ndecoder_seconds_max = 10\n";
    let started = Instant::now();
    let (found, text) = listed(&root, plan, &lines);
    let n_files = lines.len() - 1;
    println!("{n_files} files, {} clips in {:?}: {text}", found.len(), started.elapsed());
    assert!(started.elapsed() < Duration::from_mins(1));
    assert!(n_files > 300 && found.len() < n_files / 2);
    for reason in ["decoder_crashed", "decoder_timeout", "internal_error", "out_of_memory"] {
        assert!(!text.contains(reason), "{text}");
    }
    assert!(text.contains("video/no_video_stream") && text.contains("video/bad_video"), "{text}");
}

/// Copies all files below `from` under numbers, with a line for each.
fn copy_all(from: &Path, root: &str, lines: &mut Vec<String>) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            copy_all(&path, root, lines);
            continue;
        }
        let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy()));
        let name = format!("{}{}", lines.len(), extension.unwrap_or_default());
        fs::copy(&path, format!("{root}/{name}")).unwrap();
        let mut line = String::new();
        write!(line, "{name},a clip").unwrap();
        lines.push(line);
    }
}
