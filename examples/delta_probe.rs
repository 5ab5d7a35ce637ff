use bszfs::{
    codec::{self, *},
    format::Header,
};
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (base, new) = (std::fs::read(&a[1]).unwrap(), std::fs::read(&a[2]).unwrap());
    let hl = |b: &[u8]| 8 + u64::from_le_bytes(b[..8].try_into().unwrap()) as usize;
    let parse = |b: &[u8]| {
        let h: serde_json::Value = serde_json::from_slice(&b[8..hl(b)]).unwrap();
        h
    };
    let (hb, hn) = (parse(&base), parse(&new));
    let mut total = hl(&new);
    let mut chunks = Vec::new();
    let (mut models, mut small) = (0, 0);
    for (name, t) in hn.as_object().unwrap() {
        if name == "__metadata__" {
            continue;
        }
        let r = |t: &serde_json::Value, b: &[u8]| {
            let o = &t["data_offsets"];
            let h = hl(b);
            (h + o[0].as_u64().unwrap() as usize)..(h + o[1].as_u64().unwrap() as usize)
        };
        let bytes = &new[r(t, &new)];
        let bb = &base[r(&hb[name], &base)];
        let kind = match t["dtype"].as_str().unwrap() {
            "BF16" => ElementKind::Float { width: 2, exponent: 8 },
            "F16" => ElementKind::Float { width: 2, exponent: 5 },
            "F32" => ElementKind::Float { width: 4, exponent: 8 },
            _ => ElementKind::Bytes { width: 8 },
        };
        let shape: Vec<usize> =
            t["shape"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect();
        if bytes == bb {
            total += bytes.len().div_ceil(262144) * 36;
            continue;
        }
        if bytes.len() < 8192 {
            small += bytes.len();
            total += bytes.len() + 32;
            continue;
        }
        let row = (shape.len() > 1)
            .then(|| shape[1..].iter().product::<usize>())
            .filter(|&r| r * kind.width() <= 65536);
        let m = fit_differences(
            DifferenceSample { kind, bytes, base: bb, row, tensor: bytes.len() as u64 },
            0,
            0,
        )
        .unwrap();
        let mut wire = Vec::new();
        m.write_to(&mut wire);
        total += wire.len() + 4;
        models += wire.len();
        let chunk = row.map_or(262144, |r| 262144 / (r * kind.width()) * (r * kind.width()));
        let e = Encoder::new(&m);
        let mut t1 = 0;
        for (c, b) in bytes.chunks(chunk).zip(bb.chunks(chunk)) {
            let (coding, p) = encode_differences(c, b, &e);
            t1 += p.len();
            total += p.len() + 32;
            chunks.push((coding, p, c.to_vec(), b.to_vec(), wire.clone()));
        }
        if std::env::var("V").is_ok() {
            println!("{name} {} -> {t1} {:?}", bytes.len(), m.delta());
        }
    }
    println!(
        "{:.2} % (models {models}, small {small}, of {})",
        100.0 * total as f64 / new.len() as f64,
        new.len()
    );
    let models: Vec<EntropyModel> =
        chunks.iter().map(|c| EntropyModel::read_from(&c.4).unwrap()).collect();
    for d in codec::decoders() {
        if std::env::var("D").is_ok_and(|n| n != d.name()) {
            continue;
        }
        let mut out = vec![0; 1 << 20];
        let mut best = f64::MAX;
        let mut n = 0;
        for _ in 0..(std::env::var("N").map_or(5, |n| n.parse().unwrap())) {
            n = 0;
            let t = Instant::now();
            for (c, m) in chunks.iter().zip(&models) {
                if c.0 != Coding::Delta {
                    continue;
                }
                let o = &mut out[..c.2.len()];
                o.copy_from_slice(&c.3);
                n += o.len();
                d.decode(Coding::Delta, Some(m), &c.1, o).unwrap();
            }
            best = best.min(t.elapsed().as_secs_f64());
        }
        println!("{} {:.2} GB/s", d.name(), n as f64 / best / 1e9);
    }
}
