//! Real pairs and clips, row by row.

use std::collections::HashSet;
use std::fmt::Write as _;

use flamingo_dataset::{Corpus, ImageText, Row, Slot, VideoText};

use crate::program::{folder, real, succeed};

fn rows(out: &str) -> Vec<Row> {
    Corpus::open(out).unwrap().scan().collect::<Result<_, _>>().unwrap()
}

fn pairs(out: &str) -> Vec<ImageText> {
    let pair = |row| match row {
        Row::ImageText(pair) => pair,
        other => panic!("{other:?}"),
    };
    rows(out).into_iter().map(pair).collect()
}

fn clips(out: &str) -> Vec<VideoText> {
    let clip = |row| match row {
        Row::VideoText(clip) => clip,
        other => panic!("{other:?}"),
    };
    rows(out).into_iter().map(clip).collect()
}

#[test]
fn the_figures_of_a_book_become_pairs() {
    let Some(data) = real("openstax-warc/astronomy.csv") else { return };
    let Some(images) = real("interleaved/openstax-astronomy") else { return };
    let (_folder, out) = folder();
    let out = format!("{out}/pairs");
    let (list, images) = (data.to_str().unwrap(), images.to_str().unwrap());
    let lines = succeed(&["alt-text", "--input", list, "--images", images, "--out", &out]);
    println!("{lines}");
    let pairs = pairs(&out);
    let mut reader = csv::Reader::from_path(&data).unwrap();
    let n_rows = reader.records().count();
    let n_rejected: usize = lines
        .lines()
        .filter_map(|line| {
            line.strip_prefix("rejected: ")?.split(' ').next()?.parse::<usize>().ok()
        })
        .sum();
    assert_eq!(pairs.len() + n_rejected, n_rows);
    assert!(pairs.len() as f64 > 0.85 * n_rows as f64, "{lines}");
    let keys: HashSet<_> = pairs.iter().map(|pair| &pair.key).collect();
    assert_eq!(keys.len(), pairs.len());
    for pair in &pairs {
        assert!(pair.url.is_some() && pair.image.path.is_some() && !pair.caption.is_empty());
        assert_eq!((pair.width, pair.height), (pair.original_width, pair.original_height));
        // The files are small enough to be kept as they are.
        let file =
            std::fs::read(format!("{images}/{}", pair.image.path.as_ref().unwrap())).unwrap();
        assert_eq!(pair.image.bytes, file);
    }
    succeed(&["check", &out]);
}

#[test]
fn images_of_pages_with_an_alt_become_pairs() {
    let Some(archive) = real("openstax-warc/astronomy-mini.warc.gz") else { return };
    let (_folder, root) = folder();
    let (pages, out) = (format!("{root}/pages"), format!("{root}/pairs"));
    let plan = format!("{root}/plan.toml");
    std::fs::write(&plan, "[caption]\nchars_min = 5\n[image]\nsize = 200\n").unwrap();
    let archive = archive.to_str().unwrap();
    succeed(&["webpages", "--input", archive, "--out", &pages]);
    let lines = succeed(&["alt-text", "--plan", &plan, "--input", archive, "--out", &out]);
    println!("{lines}");
    succeed(&["check", &out]);
    let pairs = pairs(&out);
    let keys: HashSet<_> = pairs.iter().map(|pair| &pair.key).collect();
    assert_eq!(keys.len(), pairs.len());
    // Every image of every document that has an alt text is there, with the size it came in.
    let mut expected = 0;
    for row in rows(&pages) {
        let Row::Interleaved(document) = row else { panic!("a page is a document") };
        for slot in document.slots {
            let Slot::Image { meta, .. } = slot else { continue };
            let Some(alt) = meta.alt.filter(|alt| alt.chars().count() >= 5) else { continue };
            let caption = alt.split_whitespace().collect::<Vec<_>>().join(" ");
            let same = |pair: &&ImageText| pair.url == meta.url && pair.caption == caption;
            let pair = pairs.iter().find(same).unwrap_or_else(|| panic!("{:?} is lost", meta.url));
            assert_eq!(pair.source.as_deref(), Some(document.url.as_str()));
            assert!(pair.width.max(pair.height) <= 200);
            assert!(pair.original_width.max(pair.original_height) >= meta.width.max(meta.height));
            expected += 1;
        }
    }
    assert!(expected > 10 && pairs.len() >= expected, "{expected} of {}", pairs.len());
}

#[test]
fn samples_of_a_tar_become_pairs() {
    let Some(images) = real("labelled/clothing-96") else { return };
    let (_folder, root) = folder();
    let mut tar = tar::Builder::new(std::fs::File::create(format!("{root}/a.tar")).unwrap());
    let mut files = Vec::new();
    let mut folders = vec![images];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "jpg") {
                files.push(path);
            }
        }
    }
    files.sort();
    files.truncate(20);
    assert!(!files.is_empty());
    for (n, file) in files.iter().enumerate() {
        tar.append_path_with_name(file, format!("{n:05}.jpg")).unwrap();
        let mut header = tar::Header::new_gnu();
        let caption = format!("garment {n}");
        header.set_size(caption.len() as u64);
        tar.append_data(&mut header, format!("{n:05}.txt"), caption.as_bytes()).unwrap();
    }
    tar.finish().unwrap();
    let out = format!("{root}/out");
    succeed(&["alt-text", "--input", &format!("{root}/a.tar"), "--out", &out]);
    succeed(&["check", &out]);
    let pairs = pairs(&out);
    assert_eq!(pairs.len(), files.len());
    for (n, (pair, file)) in pairs.iter().zip(&files).enumerate() {
        assert_eq!(pair.caption, format!("garment {n}"));
        assert_eq!(pair.image.bytes, std::fs::read(file).unwrap());
    }
}

#[test]
fn both_sides_of_a_split_are_the_whole() {
    let Some(data) = real("openstax-warc/astronomy.csv") else { return };
    let Some(images) = real("interleaved/openstax-astronomy") else { return };
    let (_folder, root) = folder();
    let keys = |keep: &str| {
        let (plan, out) = (format!("{root}/{keep}.toml"), format!("{root}/{keep}"));
        let text = format!("[split]\nkeep = \"{keep}\"\nheld_out_permille = 200\nseed = 1\n");
        std::fs::write(&plan, text).unwrap();
        let (list, images) = (data.to_str().unwrap(), images.to_str().unwrap());
        succeed(&["alt-text", "--plan", &plan, "--input", list, "--images", images, "--out", &out]);
        pairs(&out).into_iter().map(|pair| pair.key).collect::<HashSet<_>>()
    };
    let (all, train, held_out) = (keys("all"), keys("train"), keys("held-out"));
    assert!(train.is_disjoint(&held_out) && !held_out.is_empty());
    assert_eq!(train.len() + held_out.len(), all.len());
}

#[test]
fn real_clips_become_frames_one_second_apart() {
    let (Some(mdn), Some(juicer)) = (real("video/mdn"), real("video/data-juicer")) else { return };
    let (_folder, root) = folder();
    let out = format!("{root}/mdn");
    let lines = succeed(&["video-text", "--input", mdn.to_str().unwrap(), "--out", &out]);
    // Three clips have no caption; the others have subtitles beside them.
    assert!(lines.contains("rejected: 3 caption/no_caption"), "{lines}");
    let found = clips(&out);
    let name = |clip: &VideoText| clip.key.split_once(':').unwrap().1.to_owned();
    let names: Vec<_> = found.iter().map(name).collect();
    assert_eq!(names, ["friday.mp4", "stream-of-water.mp4", "stream-of-water.webm"]);
    let friday = &found[0];
    assert!(
        friday.caption.starts_with("Hildy! How are you? Tell me, is the lord of the universe in?")
    );
    check_clips(&found);

    // The same files through a list.
    let list = format!("{root}/clips.csv");
    let files = ["video1.mp4", "video3.mp4", "video4.mp4", "video5.mp4"];
    let mut text = String::from("file,caption,url\n");
    for file in files {
        std::fs::copy(juicer.join(file), format!("{root}/{file}")).unwrap();
        writeln!(text, "{file},\"a caption, of {file}\",https://a.example/{file}").unwrap();
    }
    text += "t-rex.mp4,a sound,\nabsent.mp4,nothing,\n,no file,https://a.example/x\n";
    std::fs::copy(mdn.join("t-rex-roar.mp3"), format!("{root}/t-rex.mp4")).unwrap();
    std::fs::write(&list, text).unwrap();
    let out = format!("{root}/juicer");
    let lines = succeed(&["video-text", "--input", &root, "--out", &out]);
    for reason in ["1 read/file_not_found", "1 read/not_fetched"] {
        assert!(lines.contains(&format!("rejected: {reason}\n")), "{lines}");
    }
    assert!(lines.contains("rejected: 1 video/"), "a sound is no clip: {lines}");
    let found = clips(&out);
    assert_eq!(found.len(), files.len(), "{lines}");
    assert_eq!(found[0].caption, "a caption, of video1.mp4");
    assert_eq!(found[0].url.as_deref(), Some("https://a.example/video1.mp4"));
    check_clips(&found);
    succeed(&["check", &out]);
}

fn check_clips(clips: &[VideoText]) {
    for clip in clips {
        println!("{} {} {} ms {:?}", clip.key, clip.codec, clip.duration_ms, clip.frame_ms);
        assert_eq!(clip.frames.len(), clip.frame_ms.len());
        let seconds = (clip.duration_ms / 1000) as usize;
        assert!(clip.frames.len() >= seconds.min(8) && clip.frames.len() <= 8, "{clip:?}");
        for (i, &ms) in clip.frame_ms.iter().enumerate() {
            let target = 1000 * i as i32;
            // The frame on the screen then; the first may come late.
            assert!((target - 150..=target + 8).contains(&ms), "{:?}", clip.frame_ms);
        }
        let image = image::load_from_memory(&clip.frames[0].bytes).unwrap();
        assert_eq!((image.width() as i32, image.height() as i32), (clip.width, clip.height));
        assert!(
            ["h264", "vp8", "vp9", "hevc", "av1"].contains(&clip.codec.as_str()),
            "{}",
            clip.codec
        );
    }
}

#[test]
fn a_made_up_web_becomes_three_corpora() {
    let (_folder, root) = folder();
    let size =
        flamingo_fixtures::web::WebSize { pages: 6, pairs: 5, clips: 3, support: 1, queries: 1 };
    flamingo_fixtures::web::write(std::path::Path::new(&format!("{root}/web")), &size, 2).unwrap();
    for (command, input, n) in [
        ("webpages", "pages.warc.gz", 6),
        ("alt-text", "pairs.parquet", 5),
        ("video-text", "clips", 3),
    ] {
        let out = format!("{root}/{command}");
        let lines = succeed(&[command, "--input", &format!("{root}/web/{input}"), "--out", &out]);
        assert_eq!(rows(&out).len(), n, "{lines}");
        succeed(&["check", &out]);
    }
}
