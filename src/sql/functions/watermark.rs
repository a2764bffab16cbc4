//! `current_watermark(ts)`: the epoch's watermark, a TIMESTAMP(3); NULL before there is one, and outside of continuous
//! queries. `WHERE ts >= current_watermark(ts) OR current_watermark(ts) IS NULL` leaves late rows out by hand.
//!
//! It is volatile only so that nobody folds it: a continuous query puts its intent's watermark in its place.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::error::Result as PlanResult;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

/// The function's name.
pub const CURRENT_WATERMARK: &str = "current_watermark";

/// The function.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct CurrentWatermark {
    signature: Signature,
}

impl CurrentWatermark {
    pub(super) fn new() -> Self {
        Self { signature: Signature::any(1, Volatility::Volatile) }
    }
}

impl ScalarUDFImpl for CurrentWatermark {
    fn name(&self) -> &str {
        CURRENT_WATERMARK
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> PlanResult<DataType> {
        Ok(DataType::Timestamp(TimeUnit::Millisecond, None))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        Ok(ColumnarValue::Scalar(ScalarValue::TimestampMillisecond(None, None)))
    }
}
