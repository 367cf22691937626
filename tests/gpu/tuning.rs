//! Plans from a table of tuned launches.

use zipserv::gpu::{
    Family, GpuError, Plan, PlanOptions, Tuning,
    tuning::{TunedLaunch, TunedRow, TuningError, TuningTable},
};

use crate::{
    data::{Kind, Product},
    lab::{Lab, plan, plan_with},
};

const M: usize = 200;
const K: usize = 328;

/// Another launch than the dispatch's for each number of tokens, or one that no tuner would find.
fn table(lab: &Lab, rows: &[(usize, TunedLaunch)]) -> TuningTable {
    let mut table = TuningTable::new(Tuning::key(lab.device).unwrap());
    for (n, launch) in rows {
        table.insert(TunedRow {
            rows: M,
            cols: K,
            n: *n,
            launch: launch.clone(),
            default: launch.clone(),
            before_us: 1.0,
            after_us: 1.0,
        });
    }
    table
}

fn launch(kernel: &str, blocks: u32, shared_tiles: Option<u32>) -> TunedLaunch {
    TunedLaunch {
        kernel: kernel.to_owned(),
        blocks,
        shared_tiles,
    }
}

#[test]
fn tuned_plans_multiply() {
    for lab in Lab::each() {
        let bits = Kind::Gaussian.weights(M, K);
        let weights = lab.upload(M, K, &bits);
        let own = |n| plan(&weights, n);
        let mut rows = vec![(8, launch(own(8).kernel(), 3, None))];
        // As many as a damaged file may ask for.
        rows.push((16, launch(own(16).kernel(), u32::MAX, Some(u32::MAX))));
        if lab.device.family() == Family::Hopper {
            rows.push((64, launch("prefill_n128", u32::MAX, Some(u32::MAX))));
            rows.push((100, launch("prefill_n64", 2, Some(0))));
        }
        let json = serde_json::to_vec(&table(&lab, &rows)).unwrap();
        let tuning = Tuning::from_json(lab.device, &json).unwrap();
        let x = Kind::Gaussian.activations(100, K);
        let product = Product::new(&x, &bits, K);
        let tuned = |n| plan_with(&weights, n, PlanOptions::default().tuning(&tuning));
        for (n, launch) in rows {
            let plan = tuned(n);
            assert_eq!(plan.kernel(), launch.kernel);
            assert!(plan.blocks() <= launch.blocks);
            assert!(plan.to_string().contains("tuned on this device"), "{plan}");
            let y = lab.multiply(&plan, &weights, &x[..n * K], [0; 2]);
            product.check(&y, &plan);
        }
        // The dispatch has the same plan for 7 and 8 tokens, and another one for 9 and 16.
        assert_eq!((tuned(7).blocks(), tuned(8).blocks()), (3, 3));
        assert_eq!(tuned(1000), own(1000));
    }
}

#[test]
fn tables_of_others_are_refused() {
    for lab in Lab::each() {
        let kernel = Plan::kernels(lab.device).next().unwrap().0;
        let json = |table: &TuningTable| serde_json::to_string(table).unwrap();
        let good = json(&table(&lab, &[(8, launch(kernel, 1, None))]));
        let read = |json: &str| Tuning::from_json(lab.device, json.as_bytes());
        assert!(read(&good).is_ok());
        let device = lab.device.name();
        let other = read(&good.replace(device, "another device"));
        assert!(matches!(
            other,
            Err(GpuError::Tuning(TuningError::Key { what: "device", .. }))
        ));
        for (n, kernel) in [(8, "no kernel"), (20_000, kernel)] {
            let wrong = json(&table(&lab, &[(n, launch(kernel, 1, None))]));
            let damaged = matches!(read(&wrong), Err(GpuError::Tuning(TuningError::Damaged(_))));
            assert!(damaged, "{wrong}");
        }
    }
}
