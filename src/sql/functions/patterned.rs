//! A function of ours over one of DataFusion's of the same name: its pattern decides which of them is called.
//!
//! Ours takes the calls with two arguments, unless the second is a literal with a `%`; DataFusion's takes all others,
//! and keeps its types. Limit: a pattern that only the optimizer folds into such a literal is refused, where the types
//! differ.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::config::ConfigOptions;
use datafusion::error::Result as PlanResult;
use datafusion::logical_expr::type_coercion::functions::fields_with_udf;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

use super::function::Function;
use super::pattern::is_strftime;

/// A function of ours before one of DataFusion's of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Patterned {
    ours: Function,
    theirs: Arc<ScalarUDF>,
}

impl Patterned {
    /// Both functions, under the name of ours.
    pub(super) fn new(ours: Function, theirs: Arc<ScalarUDF>) -> Self {
        Self { ours, theirs }
    }
}

/// Whether the pattern is DataFusion's.
fn is_theirs(pattern: &ScalarValue) -> bool {
    pattern.try_as_str().flatten().is_some_and(is_strftime)
}

impl ScalarUDFImpl for Patterned {
    fn name(&self) -> &str {
        self.ours.name()
    }

    fn signature(&self) -> &Signature {
        self.ours.signature()
    }

    fn return_type(&self, types: &[DataType]) -> PlanResult<DataType> {
        self.ours.return_type(types)
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let theirs = self.theirs.inner().with_updated_config(config)?;
        Some(Self { ours: self.ours.clone(), theirs: Arc::new(theirs) }.into())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> PlanResult<FieldRef> {
        let pattern = args.scalar_arguments.get(1).copied().flatten();
        if args.arg_fields.len() == 2 && !pattern.is_some_and(is_theirs) {
            return self.ours.return_field_from_args(args);
        }
        let arg_fields = &fields_with_udf(args.arg_fields, self.theirs.as_ref())?;
        let field = self.theirs.return_field_from_args(ReturnFieldArgs { arg_fields, ..args })?;
        Ok(Arc::new(Field::new(self.name(), field.data_type().clone(), true)))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        match args.args.as_slice() {
            [_, ColumnarValue::Scalar(pattern)] if is_theirs(pattern) => {}
            [_, _] => return self.ours.invoke_with_args(args),
            _ => {}
        }
        args.arg_fields = fields_with_udf(&args.arg_fields, self.theirs.as_ref())?;
        for (value, field) in args.args.iter_mut().zip(&args.arg_fields) {
            if value.data_type() != *field.data_type() {
                *value = value.cast_to(field.data_type(), None)?;
            }
        }
        let returns = args.return_type().clone();
        let value = self.theirs.invoke_with_args(args)?;
        if value.data_type() == returns { Ok(value) } else { value.cast_to(&returns, None) }
    }
}
