//! The reasons why a stream that broke is not continued on another replica. Each has its row in
//! `docs/continue.md`.

/// Why a stream is not continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum NotContinued {
    /// The pool's `continue` is off.
    Off,
    /// The API reports no token ids.
    Api,
    /// The replica did not report the id of every token.
    NoTokenIds,
    /// The events have another form than vLLM's.
    Form,
    /// More than one answer was asked for.
    Choices,
    /// Beam search was asked for.
    BeamSearch,
    /// The prompt is a part of the answer.
    Echo,
    /// The probabilities of the prompt were asked for.
    PromptLogprobs,
    /// The answer follows a schema or a grammar.
    StructuredOutput,
    /// The prompt has images, audio or other content than text.
    Media,
    /// The request forces a tool call.
    Tools,
    /// A part of a tool call was passed on.
    ToolCall,
    /// The client's text may end with the beginning of a stop string.
    Stop,
    /// Presence and frequency penalties count the answer alone.
    Penalties,
    /// The client set a seed.
    Seed,
    /// The client has `kv_transfer_params` of its own.
    KvTransferParams,
    /// The request has a field that is not known to allow it.
    UnknownField,
    /// The body can't be read.
    Unreadable,
    /// A part of a character was passed on.
    InsideCharacter,
    /// The text of the tokens is not the text that was passed on.
    TextHeld,
    /// The new replica's parser takes the rest of the answer for something else than it is.
    Parser,
    /// The token ids would take more memory than is allowed.
    Memory,
    /// An event was too long, as it may be on any replica.
    EventTooLong,
    /// Replicas died one after the other, and nothing was generated between.
    Poison,
    /// All tries are used up.
    Exhausted,
    /// No replica had room in time.
    NoRoom,
    /// The request's time was over, or the gateway ended, before another replica went on.
    NoTime,
    /// The replica refused the request, or did not go on from the token ids.
    Refused,
}

impl NotContinued {
    /// Whether only the beginning of the answer is the reason, which another replica does not know. So
    /// an answer without a token may be continued.
    pub(crate) fn is_about_the_beginning(self) -> bool {
        matches!(
            self,
            Self::StructuredOutput
                | Self::Tools
                | Self::Stop
                | Self::Penalties
                | Self::Seed
                | Self::UnknownField
        )
    }

    /// Whether the next tokens may take the reason away.
    pub(crate) fn may_pass(self) -> bool {
        matches!(self, Self::Stop | Self::TextHeld | Self::InsideCharacter)
    }

    /// Its label in metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Api => "api",
            Self::NoTokenIds => "no_token_ids",
            Self::Form => "form",
            Self::Choices => "choices",
            Self::BeamSearch => "beam_search",
            Self::Echo => "echo",
            Self::PromptLogprobs => "prompt_logprobs",
            Self::StructuredOutput => "structured_output",
            Self::Media => "media",
            Self::Tools => "tools",
            Self::ToolCall => "tool_call",
            Self::Stop => "stop",
            Self::Penalties => "penalties",
            Self::Seed => "seed",
            Self::KvTransferParams => "kv_transfer_params",
            Self::UnknownField => "unknown_field",
            Self::Unreadable => "unreadable",
            Self::InsideCharacter => "inside_character",
            Self::TextHeld => "text_held",
            Self::Parser => "parser",
            Self::Memory => "memory",
            Self::EventTooLong => "event_too_long",
            Self::Poison => "poison",
            Self::Exhausted => "exhausted",
            Self::NoRoom => "no_room",
            Self::NoTime => "no_time",
            Self::Refused => "refused",
        }
    }
}
