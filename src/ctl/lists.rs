//! Stores and regions, through the protocol of any client.

use proto::{metapb, pdpb};

use super::cluster::{Cluster, call, printable};
use crate::config::Error;

impl Cluster {
    pub(super) async fn stores(&self) -> Result<(), Error> {
        let request = pdpb::GetAllStoresRequest { header: self.header(), ..Default::default() };
        let answer = self.pd.get_all_stores(call(), &request).await?;
        println!("{:>8}  {:<22} {:<22} {:<10} state", "id", "address", "status", "version");
        for store in answer.stores {
            let state = metapb::StoreState::try_from(store.state).map_or("unknown", |state| state.as_str_name());
            println!(
                "{:>8}  {:<22} {:<22} {:<10} {state}",
                store.id, store.address, store.status_address, store.version
            );
        }
        Ok(())
    }

    pub(super) async fn regions(&self, limit: i32) -> Result<(), Error> {
        let request = pdpb::ScanRegionsRequest { header: self.header(), limit, ..Default::default() };
        let answer = self.pd.scan_regions(call(), &request).await?;
        println!("{:>8} {:>8} {:>8}  epoch   start .. end", "region", "peer", "store");
        for region in answer.regions {
            let leader = region.leader.unwrap_or_default();
            let meta = region.region.unwrap_or_default();
            let epoch = meta.region_epoch.unwrap_or_default();
            println!(
                "{:>8} {:>8} {:>8}  {}:{}     {} .. {}",
                meta.id,
                leader.id,
                leader.store_id,
                epoch.conf_ver,
                epoch.version,
                printable(&meta.start_key),
                printable(&meta.end_key)
            );
        }
        Ok(())
    }
}
