"""EXAMPLE: the phrases that `examples.customer_messages` makes messages of, in English and Chinese, by intent.

In a template, (a|b|) is a choice and {name} one of the words in SLOTS. Both nest.
"""

from collections.abc import Sequence

SLOTS: dict[str, Sequence[str]] = {
    "city": ("Leeds", "Porto", "Graz", "Lyon", "Utrecht", "Aarhus", "Bilbao", "Gdansk"),
    "street": (
        "14 Mill Lane",
        "Rosenweg 3",
        "22 rue des Lilas",
        "8 Harbour Road",
        "51 Station Street",
        "Flat 6, Elm Court",
    ),
    "when": (
        "today",
        "yesterday",
        "last (monday|friday|week|month)",
        "two (days|weeks) ago",
        "on the {day}",
        "this morning",
        "tomorrow",
    ),
    "day": ("3rd", "5th", "12th", "17th", "21st", "28th"),
    "since": (
        "since {when}",
        "for (three|five|ten) days( now|)",
        "for (two|three) weeks( now|)",
        "for a week( now|)",
        "since the {day}",
    ),
    "amount": (
        "(20|35|49.90|80|120|230|15) (euros|eur|pounds|dollars)",
        "£(18|45|99|250)",
        "€(12|60|140)",
        "(200|450|1,300)",
    ),
    "shopname": (
        "a petrol station",
        "some web shop",
        "a hotel in {city}",
        "a streaming service",
        "a restaurant",
        "a shop I do not know",
    ),
    "thing": (
        "shoes",
        "jacket",
        "kettle",
        "headphones",
        "lamp",
        "desk",
        "phone case",
        'the 19" monitor',
        "coffee machine",
        "backpack",
    ),
    "insured": ("car", "bike", "kitchen", "bathroom", "roof", "phone", "laptop", "window", "fence", "washing machine"),
    "number": ("4711", "20881", "93120", "55-1207", "A7731", "K-40213"),
}

ENGLISH: dict[str, Sequence[str]] = {
    "change_address": (
        "(I|we) (have moved|moved|just moved|am moving)( to {city}|) {when}, (please|can you|could you) (update|change) (my|our|the) address",
        "(my|our) new (address|place) is {street}( in {city}|)",
        "how do I (change|update) my (address|postal address|details|home address)( in the app| online|)?",
        "(your letters|the letters|all the post) still (go|goes) to my old (flat|house|address)",
        "(please send everything|send my post) to {street} from now on",
        "I got married, (please|can you) change my (last name|surname) and (my |)address",
        "I have a new (phone number|email address|mobile number), (please update it|where do I enter it)",
        "(you still have|there is still) the wrong (house number|street|postcode) (on file|in my profile)",
        "(moving house|moving to {city}) {when}, what do you need from me( for the new address|)?",
    ),
    "login_problem": (
        "I (cannot|can't|can not) (log in|sign in|get into my account)( {since}|)",
        "(the app|the website|your page) says (wrong password|my password is wrong|unknown user)( all the time|)",
        "(I forgot|I don't remember) my (password|pin for the app|user name)",
        "my account is (locked|blocked)( after three tries|), (please unlock it|how do I get back in)?",
        "(the code|the sms code|the confirmation code) (for logging in |)(never comes|does not arrive|comes too late)",
        "(the reset link|the password link) (does not work|has expired|leads nowhere)",
        "(the app|it) (throws|kicks) me out (as soon as|whenever) I (log in|open it)",
        "new phone, (now|and) the app (does not know me|wants to be activated|asks for a code I do not have)",
        "how (do|can) I (reset|change) my (password|pin)?",
    ),
    "cancel": (
        "(I want to|I would like to|please) (cancel|end|terminate) my (contract|account|policy|subscription|membership)( by the end of the month|)",
        "(please cancel|cancel) (order|contract|policy) {number}( at once|)",
        "how (do|can) I (cancel|close|quit)( my account| my contract|)?",
        "what is the notice period( for my contract|)?",
        "I (no longer need|do not need|don't want) (it|this|the contract|the order|the policy) any more( please cancel|)",
        "I found a (cheaper|better) offer (elsewhere|somewhere else) and want to leave",
        "(please confirm|did you get) my cancellation( of {when}|)?",
        "do not renew (it|my contract|my policy)( next year|)",
        "I ordered the {thing} (by mistake|twice), (please stop it|can you still stop the order)?",
    ),
    "disputed_charge": (
        "(there is|I see|I found) a (charge|payment|booking) of {amount} (that I did not make|I don't know|I never made|I cannot explain)",
        "I was charged (twice|two times)( for the same thing|)( {when}|)",
        "who is {shopname} and why did they take {amount}?",
        "(somebody|someone) (paid|bought something) with my (card|account)( {when}|)( at {shopname}|)",
        "{amount} (was|were) (taken|debited) from my account without my (permission|ok)",
        "the amount on my (statement|bill|invoice) is wrong( it should be {amount}|)",
        "I did not (authorise|approve) the payment (to {shopname}|of {amount})",
        "why (was|did you) (I billed|charge me) {amount} (instead of|and not) {amount}?",
        "(I dispute|please reverse|I object to) the (debit|charge|payment) (of|from) {when}",
    ),
    "lost_card": (
        "I (lost|have lost|can't find) my (card|debit card|credit card|wallet)( {when}|)( in {city}|)",
        "my (card|wallet|purse|bag) (was|got) stolen( {when}|)( on the train|)",
        "(please|can you) (block|freeze|lock) my card( immediately| right now|)",
        "(the cash machine|the atm) (kept|swallowed|ate) my card( {when}|)",
        "I (need|want|would like) a (new|replacement) card( please| mine is gone|)",
        "(left|forgot) my card (at {shopname}|in a taxi|in {city}), (what now|what should I do)?",
        "I found my card again, can you unblock it?",
        "how long does a (new|replacement) card take?",
        "my new card (has not come|did not come|is not here) yet",
    ),
    "transfer_status": (
        "(I sent|I transferred) {amount} {when} and (it has not arrived|nobody has got it|the other side sees nothing)",
        "where is my (transfer|standing order|bank transfer)( of {amount}|)?",
        "(the transfer|my payment to the landlord|the standing order) (is|has been) (pending|stuck|on hold) {since}",
        "how long does a transfer (to {city}|abroad|to another bank) take?",
        "I (typed|entered) the wrong (iban|account number), can (the transfer|it) be stopped?",
        "my (salary|pension|rent money) (is|has) not (on the account|come in|arrived)( yet|)",
        "the (transfer|wire) of {amount} (was|came back) (rejected|returned|without reason)",
        "did the {amount} to {city} (go out|leave my account)?",
        "(instant transfer|express payment) is (not instant at all|taking hours)",
    ),
    "report_damage": (
        "(I want to|I have to|I need to) (report|file) (a|some) (damage|claim)( to my {insured}|)",
        "(a pipe burst|water came through the ceiling|a storm hit us) {when} and the {insured} is (damaged|ruined|wet)",
        "(somebody|a van|the neighbour) (drove into|hit|scratched) my {insured}( {when}|)( in {city}|)",
        "my {insured} (was|got) (stolen|broken|smashed)( {when}|), (what do you need|how do I report it)?",
        "the {thing} (arrived|came|was delivered) (broken|damaged|scratched|in pieces|with a crack)",
        "the {thing} (stopped working|broke) after (two days|one week)",
        "(here are|I attach) (photos|pictures) of the (damage|broken {insured}|broken {thing})",
        "I (dropped|spilled coffee on) (the|my) (laptop|phone|headphones)( {when}|), is that (covered|insured)?",
        "(hail|the storm) (broke|destroyed) the {insured}( last night|)",
    ),
    "claim_status": (
        "what is the (status|state) of (my|the) claim( {number}|)?",
        "I (reported|filed) (the damage|the claim|my claim) {when} and (have heard nothing|nobody called me back)",
        "has (the expert|the assessor|your adjuster) (looked at|decided about) (my|the) {insured}( yet|)?",
        "when will you pay (for|the repair of) the {insured}?",
        "(did you get|have you received) (my|the) (photos|papers|invoice from the garage|repair bill)( for claim {number}|)?",
        "why was (my|the) claim (rejected|turned down|only paid in part)?",
        "claim {number} is (still open|still pending|being processed) {since}",
        "the (garage|workshop|plumber) is waiting for your (approval|ok)( {since}|)",
        "is there (any news|an update|any progress) (about|on) (my claim|the water damage|the accident)?",
    ),
    "delivery_status": (
        "where is my (order|parcel|package)( {number}|)?",
        "(my|the) (parcel|order|{thing}) (should have|was supposed to) (come|arrive) {when}",
        "the tracking (page|number|link) (shows nothing|has not changed {since}|does not work)",
        "when will (the|my) {thing} be (delivered|shipped|sent)?",
        "the driver (left it somewhere|did not ring|says nobody was home)",
        "it says delivered but (there is nothing here|I have nothing|nobody got it)",
        "(one|half) of the (things|items) (is missing|was not in the box)",
        "can you deliver (on {when}|to the neighbour|to a pick-up point|after six)?",
        "I (ordered|bought) (the|a) {thing} {when} and (it is not here|nothing came|no parcel so far)",
    ),
    "refund": (
        "(when|how soon) (do|will) I get my money (back|back for the {thing})?",
        "I (sent|gave) (the|back the) {thing} (back|) {when} and (there is no refund|the money is not there)",
        "how (do|can) I (return|send back) (the|my) {thing}?",
        "the {thing} (does not fit|is too small|is not what I ordered), I want (to return it|my money back)",
        "where is (my|the) refund( of {amount}| for order {number}|)?",
        "you (promised|owe) me {amount} back( {since}|)",
        "I (paid too much|overpaid)( by {amount}|), please (pay it back|send it back)",
        "(please refund|refund) (the fee|the shipping|the premium|the rest) (for|of) {when}",
        "do I have to pay for the return( label| shipping|)?",
    ),
}

# Messages that fit several intents: nobody could tell which one was meant.
VAGUE: tuple[tuple[tuple[str, ...], Sequence[str]], ...] = (
    (
        ("delivery_status", "transfer_status", "refund", "claim_status", "lost_card"),
        (
            "it (still has not|has not|hasn't) arrived( yet|)",
            "(still waiting|I am still waiting)( {since}|)",
            "how much longer (will it|does it) take?",
            "(any news|is there any news)( about {number}|)?",
            "you said {when}, (nothing|so far nothing)",
        ),
    ),
    (
        ("disputed_charge", "refund", "transfer_status", "cancel"),
        (
            "I want my {amount} back",
            "(the money|the {amount}) is gone( {since}|)",
            "please give me back the money( of {when}|)",
            "(something|the amount) is wrong with my (payment|account)",
        ),
    ),
    (
        ("report_damage", "refund", "delivery_status", "cancel"),
        (
            "the {thing} is (not ok|bad|wrong), what now?",
            "I am not happy with the {thing}",
            "please take the {thing} back",
        ),
    ),
    (
        ("login_problem", "change_address", "lost_card"),
        (
            "(something|it) does not work in the app",
            "how do I change (it|this) in the app?",
            "I need a new (pin|code)",
            "please (update|unlock) my account",
        ),
    ),
    (
        ("change_address", "cancel", "claim_status", "report_damage"),
        (
            "did you get my (letter|mail|message)( of {when}|)?",
            "which form do I need?",
            "please call me back about {number}",
        ),
    ),
)

CHINESE: dict[str, Sequence[str]] = {
    "change_address": (
        "我(上周|昨天|)搬家了，请(帮我|)(修改|更新)地址",
        "怎么(修改|更改)我的(地址|手机号|联系方式)？",
        "我的新地址在(上海|杭州|广州)",
    ),
    "login_problem": (
        "我(登录不了|无法登录)(账户|手机应用|)",
        "(密码|验证码)(错了|收不到|忘记了)，怎么办？",
        "账户被锁(定|)了，请(帮我|)解锁",
    ),
    "cancel": ("我(想|要)取消(订单|合同|保险)", "请(帮我|)(取消|停止)自动续费", "怎么(注销|关闭)(账户|我的账户)？"),
    "disputed_charge": (
        "(账单|账户)上有一笔(不是我的|我没有做过的)(付款|扣款)",
        "为什么扣了我(两次|一百元|五十元)？",
        "这笔(付款|扣款)不是我(做|同意)的",
    ),
    "lost_card": ("我的(银行卡|卡|钱包)(丢了|不见了|被偷了)", "请(马上|立刻|)冻结我的卡", "我(要|想)补办(一张|)新卡"),
    "transfer_status": ("我(昨天|上周)转的(钱|账)还没到", "转账(要多久|什么时候到)？", "(转账|汇款)被退回了，为什么？"),
    "report_damage": (
        "我的(车|手机|窗户)(坏了|被撞了)，(要|想)报(损|案)",
        "(东西|商品|杯子)收到时(坏了|破了)",
        "家里(漏水|进水)了，(怎么报案|能赔吗)？",
    ),
    "claim_status": (
        "我的理赔(到哪一步了|有结果了吗)？",
        "理赔款什么时候(到|付)？",
        "上周(报的案|的理赔)还没(消息|结果)",
    ),
    "delivery_status": ("我的(包裹|快递|订单)(到哪里了|在哪里)？", "(快递|包裹)还没(收到|到)", "什么时候(发货|送到)？"),
    "refund": ("什么时候(退款|退钱)？", "我想(退货|退款)，怎么办？", "(鞋|衣服)不合适，(要|想)退货"),
}
CHINESE_OPENERS = ("", "", "你好，", "您好，", "请问，", "麻烦你，")
CHINESE_CLOSERS = ("", "", "谢谢", "。谢谢！", "，急！", "。")

OPENERS = {
    "app": ("", "", "", "hi, ", "hey ", "hello, ", "ok so ", "help!! ", "again: "),
    "mail": (
        "Dear Sir or Madam, ",
        "Hello, ",
        "Good morning, ",
        "Hi team, ",
        "To whom it may concern: ",
        "As I wrote before, ",
        "",
    ),
    "phone": ("", "yes hello ", "hi um ", "uh ", "good morning so ", "well ", "I was told to call you ", "yeah so "),
}
CLOSERS = {
    "app": ("", "", "", "", " thx", " pls", " asap", " 😡", " 🙏", " 😭😭", " !!", " ...", " 👍"),
    "mail": (
        ". Kind regards",
        ". Thank you in advance",
        ". Please reply soon",
        ". Best wishes, a long-time customer",
        "",
        ". This is urgent",
        ". Yours sincerely",
    ),
    "phone": ("", "", " you know", " is that right", " thank you", " if you could look that up", " yeah", " please"),
}
JOINS = (", and ", ". Also, ", " and now ", ", besides ", ". By the way ")
